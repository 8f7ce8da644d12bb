"""`reasoning_details`, the blocks of reasoning that OpenRouter gives and takes back as they were."""

import json
from collections.abc import Mapping
from typing import Any

from janus_inference.dialects.json_text import NotJson

# What comes in pieces. Encrypted data comes whole, or in pieces of one numbered block.
_TEXTS = ("text", "summary")


class ReasoningDetails:
    """The blocks of one answer, each of them whole: its signature proves all of it."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._last: dict[tuple[Any, Any], dict[str, Any]] = {}
        self._by_id: dict[tuple[Any, Any, Any], dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self.blocks)

    def add(self, detail: Mapping[str, Any], *, whole: bool) -> None:
        """One block, or a fragment of one; a fragment without an id goes on with the last block of its index."""
        kind, index, own = (detail.get(name) for name in ("type", "index", "id"))
        known = None
        if not whole:
            known = self._last.get((kind, index)) if own is None else self._by_id.get((kind, index, own))
        if known is None or (index is None and own is None and detail.get("data")):
            known = {}
            self.blocks.append(known)
        self._last[kind, index] = known
        if own is not None:
            self._by_id[kind, index, own] = known
        for name, value in detail.items():
            before = known.get(name)
            if (name in _TEXTS or name == "data") and isinstance(before, str) and value:
                known[name] = before + value
            elif value is not None or name not in known:
                known[name] = value


def details_of(data: bytes) -> list[Any]:
    """The blocks that such a text is. Raises NotJson for what could not be sent."""
    try:
        value = json.loads(data, parse_constant=_no_number)
        # A number beyond every float is read as infinity, for which JSON has no word.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise NotJson("cannot be written again") from None
    if not isinstance(value, list):
        raise NotJson("not a list")
    return value


def _no_number(word: str) -> None:
    raise ValueError(word)
