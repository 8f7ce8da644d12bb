"""What every dialect's reader needs: the numbers of parts, and whole tool calls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jiter

from janus_inference import answer_size
from janus_inference.dialects import call_ids
from janus_inference.dialects.capabilities import malformed
from janus_inference.dialects.json_text import NotJson, compact, strict_object
from janus_inference.events import ProviderEvent, ToolCallCompleted, ToolCallStarted, Usage, UsageUpdated, is_list_tier
from janus_inference.model import (
    MOST_ARGUMENTS_BYTES,
    MOST_OPAQUE_BYTES,
    MOST_PARTS,
    MOST_TEXT_BYTES,
    MOST_TYPE_CHARS,
    Citation,
    Opaque,
    Part,
    Prompt,
    ToolCall,
)
from janus_kit import json_schema
from janus_kit.json_schema.rules import BrokenRule, read


class Numbering:
    """Gives the parts of an answer their indexes, in order of their first appearance."""

    def __init__(self) -> None:
        self._indexes: dict[object, int] = {}

    def next(self) -> int:
        """The index of a part that is not asked for again."""
        return self.of(object())

    def of(self, part: object) -> int:
        """The index of this part; the next free one when it is new."""
        index = self._indexes.setdefault(part, len(self._indexes))
        if index >= MOST_PARTS:
            raise answer_size.too_many_parts()
        return index


@dataclass(slots=True)
class OpenCall:
    """A tool call whose arguments are still coming; ``given_id`` is the provider's own id, if it gave one."""

    part_index: int
    call_id: str
    name: str
    fragments: list[str] = field(default_factory=list)
    given_id: str = ""
    chars: int = 0

    def add(self, piece: str) -> None:
        """More of the arguments. Raises ProviderFailure when they are larger than may be sent back."""
        self.fragments.append(piece)
        self.chars += len(piece)
        if self.chars > MOST_ARGUMENTS_BYTES:
            raise answer_size.arguments_too_large()

    def is_whole(self) -> bool:
        """Whether the arguments so far are one JSON value, so that no more can follow."""
        try:
            jiter.from_json("".join(self.fragments).encode())
        except ValueError:
            return False
        return True


def reported(usage: Usage | None) -> list[ProviderEvent]:
    """What a provider's count says; nothing where it counted nothing."""
    return [UsageUpdated(usage)] if usage is not None and (usage.input_tokens or usage.output_tokens) else []


def counted(usage: Usage | None, tier: object) -> Usage | None:
    """A count, or what the answer's tier alone tells of a count that is yet to come."""
    return Usage(off_list=True) if usage is None and not is_list_tier(tier) else usage


class CallCheck:
    """Begins and completes the tool calls of one answer, so that they can be sent back.

    `{}` for no arguments, ids and names that a prompt takes, and whether the
    arguments are what the tool takes.
    """

    def __init__(self, schemas: Mapping[str, Any], ids: Iterable[str] = ()) -> None:
        self._schemas = schemas
        self._ids = set(ids)

    @classmethod
    def of(cls, prompt: Prompt) -> "CallCheck":
        """With the schemas of the prompt's tools, already validated as JSON, and the ids of the calls before.

        Not every provider takes a conversation in which an id comes twice.
        """
        return cls(
            {
                tool.name: jiter.from_json(tool.parameters_schema_json.encode()) if tool.parameters_schema_json else {}
                for tool in prompt.tools
            },
            (part.call_id for message in prompt.messages for part in message.parts if isinstance(part, ToolCall)),
        )

    def knows(self, name: str) -> bool:
        """Whether there is a tool of this name, and none whose name only begins so."""
        return name in self._schemas and not any(tool != name and tool.startswith(name) for tool in self._schemas)

    def begun(self, call: OpenCall) -> ToolCallStarted:
        """Tell of a call, by the id and the name that it has from now on."""
        call.call_id = call_ids.mended_id(call.call_id, self._ids)
        call.name = call_ids.mended_name(call.name, self._schemas)
        return ToolCallStarted(call.part_index, call.call_id, call.name)

    def of_free_text(self, call: OpenCall, arguments: str) -> ToolCallCompleted:
        """A whole call whose arguments hold to no schema. Raises as ``completed``."""
        return ToolCallCompleted(call.part_index, ToolCall(call.call_id, call.name, _bounded(arguments)))

    def completed(self, call: OpenCall) -> ToolCallCompleted:
        """The whole call and what is wrong with it. Raises ProviderFailure when it is larger than may be sent back."""
        text = _bounded("".join(call.fragments))
        arguments = text if text.strip() else "{}"
        whole = ToolCall(call.call_id, call.name, arguments)
        try:
            value = jiter.from_json(arguments.encode(), allow_inf_nan=False)
        except ValueError:
            return ToolCallCompleted(call.part_index, whole, False, False, f"the arguments {_broken_rule(arguments)}")
        if not isinstance(value, dict):
            return ToolCallCompleted(call.part_index, whole, True, False, "the arguments must be a JSON object")
        if call.name not in self._schemas:
            return ToolCallCompleted(call.part_index, whole, True, False, f"there is no tool named '{call.name}'")
        problem = json_schema.problem(value, self._schemas[call.name])
        return ToolCallCompleted(call.part_index, whole, True, problem is None, problem or "")


def _broken_rule(arguments: str) -> str:
    """Why they were not read."""
    try:
        read(arguments)
    except BrokenRule as broken:
        return str(broken)
    return "must be valid JSON"


def _bounded(arguments: str) -> str:
    if len(arguments.encode()) > MOST_ARGUMENTS_BYTES:
        raise answer_size.arguments_too_large()
    return arguments


def shown(parts: Sequence[Part], issuer: str) -> list[tuple[int, Part]]:
    """The parts that this issuer may see, by their indexes: all but other providers' own blocks."""
    return [(at, part) for at, part in enumerate(parts) if not isinstance(part, Opaque) or part.issuer == issuer]


def kept_block(issuer: str, kind: str, block: Any) -> Opaque | None:
    """A block of the issuer's own; None where it could not be sent back in the next prompt."""
    data = compact(block).encode()
    fits = 0 < len(kind) <= MOST_TYPE_CHARS and len(data) <= MOST_OPAQUE_BYTES
    return Opaque(issuer, kind, data) if fits else None


def kept_proof(proof: bytes) -> bytes:
    """The proof of some reasoning; nothing where it could not be sent back."""
    return proof if len(proof) <= MOST_TEXT_BYTES else b""


def own_block(part: Opaque, path: str) -> dict[str, Any]:
    """A block as the caller wrote it in the issuer's form."""
    try:
        block = strict_object(part.data)
    except NotJson:
        block = {}
    if block.get("type") != part.type:
        raise malformed(f"{path}.opaque.data", "must be a JSON object whose `type` is the part's")
    return block


def citation(said: Mapping[str, Any], part_index: int, *, start: object = 0, end: object = 0) -> Citation:
    """A source in the contract's bounds, under whatever names a provider has for its title and address."""
    first, last = (place if isinstance(place, int) and 0 < place < 2**31 else 0 for place in (start, end))
    return Citation(
        start=first,
        end=max(first, last),
        title=_first(said, ("title", "document_title"), 1024),
        uri=_first(said, ("url", "source"), 2048),
        quote=_first(said, ("cited_text", "content"), 16 * 1024),
        part_index=part_index,
    )


def _first(said: Mapping[str, Any], names: tuple[str, ...], most: int) -> str:
    return next((text[:most] for name in names if isinstance(text := said.get(name), str) and text), "")
