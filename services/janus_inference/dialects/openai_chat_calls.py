"""Tool calls of a Chat Completions answer, put together from what servers make of their index, id and name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from janus_inference.dialects.json_text import NotJson, compact, strict_object
from janus_inference.dialects.parts import CallCheck, Numbering, OpenCall
from janus_inference.events import (
    OpaqueAdded,
    ProviderEvent,
    ToolCallArguments,
)
from janus_inference.model import Opaque, ToolCall

CUSTOM = "custom_tool_call"
"""The type of the opaque part that says that the call after it is one of free text."""
_DIGITS = re.compile(r"[0-9]{1,9}", re.ASCII)
INPUT = "input"
"""The argument that such a text is passed on as."""


@dataclass(slots=True)
class _Call(OpenCall):
    """``told``: its beginning was passed on. ``custom``: its argument is a free text."""

    told: bool = False
    custom: bool = False


class ToolCalls:
    """Tells the calls of one answer apart. ``unknown`` counts those of kinds that this version does not know."""

    def __init__(self, parts: Numbering, check: CallCheck, issuer: str) -> None:
        self._parts, self._check, self._issuer = parts, check, issuer
        self._calls: list[_Call] = []
        self._untold: list[_Call] = []
        self._at: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._last: _Call | None = None
        self.unknown = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, said: Iterable[Mapping[str, Any]], events: list[ProviderEvent], *, whole: bool) -> None:
        """What one delta or, ``whole``, one message says of calls. Raises where it is of no known form."""
        for place, fragment in enumerate(said):
            function = fragment.get("function")
            custom = function is None and fragment.get("custom") is not None
            if function is None and not custom and fragment.get("type") not in (None, "", "function", "custom"):
                self.unknown += 1
                continue
            self._fragment(fragment, function or fragment.get("custom") or {}, custom, events, whole, place)

    def tell(self, events: list[ProviderEvent]) -> None:
        """Something else begins, so that the names of the calls before it are whole."""
        for call in self._untold:
            if call.name and not call.custom:
                self._tell(call, events)
        self._untold = [call for call in self._untold if not call.told]

    def complete(self, events: list[ProviderEvent]) -> bool:
        """All of them, whole. False where one never got a name."""
        if not all(call.name for call in self._calls):
            return False
        for call in self._calls:
            if call.custom:
                self._custom(call, events)
            else:
                self._tell(call, events)
                events.append(self._check.completed(call))
        return True

    def _fragment(
        self,
        fragment: Mapping[str, Any],
        function: Mapping[str, Any],
        custom: bool,
        events: list[ProviderEvent],
        whole: bool,
        place: int,
    ) -> None:
        index, call_id = _index(fragment.get("index")), _text(fragment.get("id") or "")
        name = _text(function.get("name") or "")
        arguments = function.get("input" if custom else "arguments") or ""
        # A few servers send the parsed arguments instead of their text.
        piece = arguments if isinstance(arguments, str) else compact(arguments)
        if whole:
            if not name:
                raise KeyError("name")
            call = self._begin(call_id, custom, events)
        elif not (call_id or name or piece):
            return
        elif place and name and not call_id and index is None:
            # No delta says a name in two pieces.
            call = self._begin(call_id, custom, events)
        else:
            call = self._continued(index, call_id, name, piece) or self._begin(call_id, custom, events)
        self._last = call
        if index is not None:
            self._at[index] = call
        if call_id and not call.given_id:
            self._identify(call, call_id)
        if name and not (call.told or (call.name and call.fragments)):
            # Said in pieces, said again, or said again as far as it goes.
            call.name = name if name.startswith(call.name) else call.name + name
        if piece:
            call.add(piece)
        self._pass_on(call, piece, events)

    def _continued(self, index: int | None, call_id: str, name: str, piece: str) -> _Call | None:
        """The call that a fragment goes on with; None where it begins another.

        Some servers give every call the index 0, or none, some give every call
        the same id, every fragment one of its own, or none.
        """
        numbered = index is not None
        before = self._at.get(index) if index is not None else self._last
        if call_id:
            known = before if before and before.given_id == call_id else self._by_id.get(call_id)
            if known and (before or not numbered):
                return None if name and piece and known.is_whole() else known
            if before is None:
                return None
            if not before.given_id:
                return None if name and before.name else before
            return before if numbered and piece and not name and not before.is_whole() else None
        if before is None or not name:
            return before
        if before.is_whole():
            return before if numbered and not piece else None
        if before.fragments or not before.name:
            return before
        another = not numbered if name == before.name else self._check.knows(before.name)
        return None if another else before

    def _begin(self, given: str, custom: bool, events: list[ProviderEvent]) -> _Call:
        self.tell(events)
        number = len(self._calls)
        # It gets its index when it is told of: parts are numbered as they appear.
        call = _Call(-1, self._free(f"call_{number}", number), "", custom=custom)
        self._calls.append(call)
        self._untold.append(call)
        if given:
            self._identify(call, given)
        return call

    def _identify(self, call: _Call, given: str) -> None:
        """Takes the provider's id, unless ours was passed on; where ids repeat, ours tell the calls apart."""
        call.given_id = given
        self._by_id[given] = call
        if not call.told:
            call.call_id = ""
            call.call_id = self._free(given, self._calls.index(call))

    def _free(self, wanted: str, number: int) -> str:
        taken = {call.call_id for call in self._calls}
        while wanted in taken:
            wanted = f"{wanted}_{number}"
        return wanted

    def _pass_on(self, call: _Call, piece: str, events: list[ProviderEvent]) -> None:
        """A call begins once its name is whole: its arguments have begun, or there is such a tool."""
        if call.custom:
            return  # a free text is an argument once it is whole
        if call.told:
            if piece:
                events.append(ToolCallArguments(call.part_index, piece))
        elif call.name and (call.fragments or self._check.knows(call.name)):
            self._tell(call, events)

    def _tell(self, call: _Call, events: list[ProviderEvent]) -> None:
        if call.told:
            return
        call.told = True
        call.part_index = self._parts.next()
        events.append(self._check.begun(call))
        if call.fragments:
            events.append(ToolCallArguments(call.part_index, "".join(call.fragments)))

    def _custom(self, call: _Call, events: list[ProviderEvent]) -> None:
        """As a call of one argument, after a part by which its issuer knows it again."""
        arguments = compact({INPUT: "".join(call.fragments)})
        before, call.part_index = self._parts.next(), self._parts.next()
        begun = self._check.begun(call)
        kept = Opaque(self._issuer, CUSTOM, compact({"id": call.call_id}).encode())
        events += [
            OpaqueAdded(before, kept),
            begun,
            ToolCallArguments(call.part_index, arguments),
            self._check.of_free_text(call, arguments),
        ]


def custom_id(data: bytes) -> object:
    """The id of the call that such an opaque part speaks of. Raises NotJson."""
    return strict_object(data).get("id")


def custom_input(call: ToolCall) -> str | None:
    """The free text that a call was given; None for one that cannot be such a call."""
    try:
        text = strict_object(call.arguments_json.encode()).get(INPUT)
    except NotJson:
        return None
    return text if isinstance(text, str) else None


def _index(said: object) -> int | None:
    """The number of a call, also as a text or a float; None for what is no number, which counts as not said."""
    if type(said) is int:
        return said
    if isinstance(said, float) and said.is_integer():
        return int(said)
    if isinstance(said, str) and _DIGITS.fullmatch(said):
        return int(said)
    return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value
