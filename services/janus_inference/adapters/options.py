"""Fields that a caller adds to the provider's request."""

from collections.abc import Collection, Mapping
from typing import Any

from janus_kit.errors import InvalidArgument


def with_options(body: Mapping[str, Any], options: Mapping[str, object], reserved: Collection[str]) -> dict[str, Any]:
    """The options, as a new dict. Raises InvalidArgument for a field that Janus sets itself."""
    for name in options:
        if name in body or name in reserved:
            raise InvalidArgument("prompt.provider_options_json", f"must not repeat '{name[:64]}', which Janus sets")
    return dict(options)
