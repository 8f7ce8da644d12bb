"""Pointers of a schema into itself."""

from typing import Any
from urllib.parse import unquote

NOWHERE = object()
_MOST_STEPS = 64


def resolved(reference: str, root: Any) -> Any:
    """What a `#` or `#/…` pointer leads to, or NOWHERE; anything else is not followed."""
    if reference != "#" and not reference.startswith("#/"):
        return NOWHERE
    steps = unquote(reference[1:]).split("/")[1:]
    if len(steps) > _MOST_STEPS:
        return NOWHERE
    found = root
    for step in steps:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isascii() and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return NOWHERE
    return found
