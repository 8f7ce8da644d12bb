"""What every dialect's reader needs: the numbers of parts, and whole tool calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jiter

from janus_inference.dialects.capabilities import malformed
from janus_inference.dialects.json_text import NotJson, strict_object
from janus_inference.events import ProviderEvent, ToolCallCompleted, Usage, UsageUpdated
from janus_inference.model import Citation, Opaque, Part, Prompt, ToolCall
from janus_kit import json_schema


class Numbering:
    """Gives the parts of an answer their indexes, in order of their first appearance."""

    def __init__(self) -> None:
        self._indexes: dict[object, int] = {}

    def next(self) -> int:
        """The index of a part that is not asked for again."""
        return self.of(object())

    def of(self, part: object) -> int:
        """The index of this part; the next free one when it is new."""
        return self._indexes.setdefault(part, len(self._indexes))


@dataclass(slots=True)
class OpenCall:
    """A tool call whose arguments are still coming; ``given_id`` is the provider's own id, if it gave one."""

    part_index: int
    call_id: str
    name: str
    fragments: list[str] = field(default_factory=list)
    given_id: str = ""

    def is_whole(self) -> bool:
        """Whether the arguments so far are one JSON value, so that no more can follow."""
        try:
            jiter.from_json("".join(self.fragments).encode())
        except ValueError:
            return False
        return True


def reported(usage: Usage | None) -> list[ProviderEvent]:
    """What a provider's count says; nothing where it counted nothing."""
    return [UsageUpdated(usage)] if usage is not None else []


class CallCheck:
    """Completes tool calls: `{}` for no arguments, and whether they are what the tool takes."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas

    @classmethod
    def of(cls, prompt: Prompt) -> "CallCheck":
        """With the schemas of the prompt's tools, already validated as JSON."""
        return cls(
            {
                tool.name: jiter.from_json(tool.parameters_schema_json.encode()) if tool.parameters_schema_json else {}
                for tool in prompt.tools
            }
        )

    def knows(self, name: str) -> bool:
        """Whether there is a tool of this name, and none whose name only begins so."""
        return name in self._schemas and not any(tool != name and tool.startswith(name) for tool in self._schemas)

    def completed(self, call: OpenCall) -> ToolCallCompleted:
        """The whole call and what is wrong with it."""
        text = "".join(call.fragments)
        arguments = text if text.strip() else "{}"
        whole = ToolCall(call.call_id, call.name, arguments)
        try:
            value = jiter.from_json(arguments.encode(), allow_inf_nan=False)
        except ValueError:
            return ToolCallCompleted(call.part_index, whole, False, False, "the arguments are not valid JSON")
        if not isinstance(value, dict):
            return ToolCallCompleted(call.part_index, whole, True, False, "the arguments must be a JSON object")
        if call.name not in self._schemas:
            return ToolCallCompleted(call.part_index, whole, True, False, f"there is no tool named '{call.name}'")
        problem = json_schema.problem(value, self._schemas[call.name])
        return ToolCallCompleted(call.part_index, whole, True, problem is None, problem or "")


def shown(parts: Sequence[Part], issuer: str) -> list[tuple[int, Part]]:
    """The parts that this issuer may see, by their indexes: all but other providers' own blocks."""
    return [(at, part) for at, part in enumerate(parts) if not isinstance(part, Opaque) or part.issuer == issuer]


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
