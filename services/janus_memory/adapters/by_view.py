"""What searches of several views at the same time come to."""

from collections.abc import Sequence

from janus_memory.model import Neighbour, View


def by_view(views: Sequence[View], results: Sequence[list[Neighbour] | BaseException]) -> dict[View, list[Neighbour]]:
    """Results of searches that have all ended, or the first failure among them."""
    found: dict[View, list[Neighbour]] = {}
    for view, result in zip(views, results, strict=True):
        if isinstance(result, BaseException):
            raise result
        found[view] = result
    return found
