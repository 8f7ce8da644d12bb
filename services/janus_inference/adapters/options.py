"""Fields that a caller adds to the provider's request."""

from collections.abc import Collection, Mapping
from typing import Any

from janus_kit.errors import InvalidArgument

_FIELD = "prompt.provider_options_json"


def with_options(
    body: Mapping[str, Any],
    options: Mapping[str, object],
    reserved: Collection[str],
    *,
    lists: Collection[str] = (),
    objects: Collection[str] = (),
) -> dict[str, Any]:
    """The options, as a new dict. Raises InvalidArgument for a field that Janus sets itself.

    ``lists`` are added to, as a provider's own tools are beside the caller's;
    so are ``objects``, by fields that Janus does not set.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        ours = body.get(name)
        if name in lists and isinstance(value, list) and isinstance(ours or [], list):
            found[name] = [*(ours or ()), *(each for each in value if each not in (ours or ()))]
        elif name in objects and isinstance(value, Mapping) and isinstance(ours or {}, Mapping):
            if both := (ours or {}).keys() & value.keys():
                raise InvalidArgument(_FIELD, f"must not repeat '{name}.{min(both)[:64]}', which Janus sets")
            found[name] = {**(ours or {}), **value}
        elif name in body or name in reserved:
            raise InvalidArgument(_FIELD, f"must not repeat '{name[:64]}', which Janus sets")
        else:
            found[name] = value
    return found
