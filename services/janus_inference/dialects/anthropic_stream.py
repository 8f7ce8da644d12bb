"""Messages answers as Anthropic writes them: blocks, each started, added to and stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from janus_inference import accounting
from janus_inference.dialects import error_body
from janus_inference.dialects.anthropic_blocks import CALL, kept
from janus_inference.dialects.json_text import NotJson, compact, parse_object
from janus_inference.dialects.parts import (
    CallCheck,
    Numbering,
    OpenCall,
    citation,
    kept_block,
    kept_proof,
    reported,
)
from janus_inference.dialects.reader import WRONG_SHAPE, StreamReader
from janus_inference.events import (
    CitationAdded,
    FinishReason,
    OpaqueAdded,
    ProviderEvent,
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    Stopped,
    TextDelta,
    ToolCallArguments,
    UsageUpdated,
)
from janus_inference.model import MOST_CITATION_BYTES
from janus_inference.provider_errors import STATUS_OF_TYPE, Refused, broken, classify

_REASONS = {
    "end_turn": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "stop_sequence": FinishReason.STOP_SEQUENCE,
    "tool_use": FinishReason.TOOL_CALLS,
    "pause_turn": FinishReason.PAUSE,
    "refusal": FinishReason.REFUSAL,
}


# Blocks whose parts are events; any other is kept as it is.
_READ_BLOCKS = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})


@dataclass(slots=True)
class _Block:
    """A block of the answer that has begun."""

    part_index: int
    kind: str
    start: Mapping[str, Any]
    call: OpenCall | None = None
    signature: str = ""
    done: bool = False
    input_json: list[str] = field(default_factory=list)
    added: dict[str, Any] = field(default_factory=dict)

    def extend(self, delta: Mapping[str, Any]) -> None:
        """What a delta adds to a block that is not ours to read: texts grow, anything else replaces."""
        for name, value in delta.items():
            if name == "type" or value is None:
                continue
            before = self.added.get(name, self.start.get(name))
            grows = isinstance(before, str) and isinstance(value, str)
            self.added[name] = before + value if grows else value


class MessagesReader(StreamReader):
    """Reads one answer; see ``Reader``. Only `message_stop` makes a stream whole."""

    dialect = "anthropic_messages"

    def __init__(self, provider: str, model: str, issuer: str, calls: CallCheck) -> None:
        super().__init__(provider)
        self._model, self._issuer = model, issuer
        self._check = calls
        self._parts = Numbering()
        self._blocks: dict[int, _Block] = {}
        self._response_id = self._response_model = ""
        self._reason: str | None = None
        self._explanation = ""
        self._usage: dict[str, Any] = {}
        # What is said before the answer does not count the answer.
        self._is_counted = False

    def body(self, data: bytes) -> list[ProviderEvent]:
        events: list[ProviderEvent] = []
        try:
            message = parse_object(data)
            if message.get("type") == "error":
                raise classify(self._provider, self._model, _refused(message.get("error")))
            self._message_start(message, events)
            self._is_counted = True
            for index, block in enumerate(message["content"]):
                self._block_start(index, block, events)
                self._block_stop(index, events)
            self._stopping(message)
            self._end(events)
        except WRONG_SHAPE:
            raise broken(self._provider, "the answer is not of the expected form") from None
        return events

    def _event(self, name: bytes, data: bytes, events: list[ProviderEvent]) -> None:
        event = parse_object(data, self._halves)
        match event.get("type"):
            case "content_block_delta":
                self._delta(self._blocks[event["index"]], event["delta"], events)
                if self._alike.wants(data):
                    self._learn(name, data, event)
            case "content_block_start":
                self._block_start(event["index"], event["content_block"], events)
            case "content_block_stop":
                self._block_stop(event["index"], events)
            case "message_start":
                self._message_start(event["message"], events)
            case "message_delta":
                self._stopping(event["delta"])
                self._is_counted = self._is_counted or bool(event.get("usage"))
                self._note_usage(event.get("usage"), events)
            case "message_stop":
                self._end(events)
            case "error":
                raise classify(self._provider, self._model, _refused(event.get("error")))
            case "ping":
                pass
            case _:
                self.unknown += 1

    def _message_start(self, message: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        if isinstance(identity := message.get("id"), str):
            self._response_id = identity
        if isinstance(model := message.get("model"), str):
            self._response_model = model
        self._note_usage(message.get("usage"), events)

    def _stopping(self, said: Mapping[str, Any]) -> None:
        self._reason = said.get("stop_reason") or self._reason
        explanation = (said.get("stop_details") or {}).get("explanation")
        if self._reason == "refusal" and isinstance(explanation, str):
            self._explanation = explanation

    def _note_usage(self, usage: Mapping[str, Any] | None, events: list[ProviderEvent]) -> None:
        if usage:
            self._usage = accounting.merged(self._usage, usage)
            events += reported(accounting.anthropic_usage(self._usage))

    def _block_start(self, index: int, start: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        kind = start["type"]
        if index in self._blocks:
            self._block_stop(index, events)
            self._alike.forget()
        fields = kept(start) if kind == CALL else {}
        # Before the call, so that it is known when the call is said again.
        before = self._parts.next() if fields else None
        block = _Block(self._parts.next(), kind, start)
        self._blocks[index] = block
        match kind:
            case "text":
                if text := start.get("text"):
                    events.append(TextDelta(block.part_index, _text(text)))
                events += [self._cited(each, block) for each in start.get("citations") or ()]
            case "thinking":
                if thinking := start.get("thinking"):
                    events.append(ReasoningDelta(block.part_index, text=_text(thinking)))
                block.signature = start.get("signature") or ""
            case "redacted_thinking":
                if redacted := kept_proof(start["data"].encode()):
                    events.append(ReasoningDelta(block.part_index, redacted=redacted))
            case "tool_use":
                block.call = OpenCall(block.part_index, _text(start["id"]), _text(start["name"]))
                begun = self._check.begun(block.call)
                if before is not None:
                    self._keep(before, CALL, {**fields, "id": begun.call_id}, events)
                events.append(begun)

    def _delta(self, block: _Block, delta: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        match delta["type"]:
            case "text_delta":
                if text := delta["text"]:
                    events.append(TextDelta(block.part_index, _text(text)))
            case "input_json_delta":
                if piece := delta["partial_json"]:
                    if block.call is not None:
                        block.call.add(_text(piece))
                        events.append(ToolCallArguments(block.part_index, piece))
                    else:
                        block.input_json.append(_text(piece))
            case "thinking_delta":
                if thinking := delta["thinking"]:
                    events.append(ReasoningDelta(block.part_index, text=_text(thinking)))
            case "signature_delta":
                block.signature += delta["signature"]
            case "citations_delta":
                events.append(self._cited(delta["citation"], block))
            case _ if block.kind in _READ_BLOCKS:
                self.unknown += 1
            case _:
                block.extend(delta)

    def _learn(self, name: bytes, data: bytes, event: dict[str, Any]) -> None:
        """The next event like this one need not be parsed, where it is some text or thinking."""
        part, delta = self._blocks[event["index"]].part_index, event["delta"]
        match delta["type"]:
            case "text_delta":
                self._alike.learn(name, data, event, delta, "text", partial(TextDelta, part))
            case "thinking_delta":
                self._alike.learn(name, data, event, delta, "thinking", lambda text: ReasoningDelta(part, text=text))

    def _cited(self, said: Mapping[str, Any], block: _Block) -> CitationAdded:
        data = compact(said).encode()
        cited = citation(said, block.part_index)
        # One that is too large to be kept is not said again.
        is_kept = len(data) <= MOST_CITATION_BYTES
        return CitationAdded(replace(cited, issuer=self._issuer, data=data) if is_kept else cited)

    def _block_stop(self, index: int, events: list[ProviderEvent]) -> None:
        block = self._blocks[index]
        if block.done:
            return
        block.done = True
        match block.kind:
            case "text":
                pass
            case "thinking" | "redacted_thinking":
                # Also without a signature: it says whose reasoning this is.
                proof = kept_proof(block.signature.encode())
                events.append(ReasoningSignature(block.part_index, proof, self._issuer))
            case "tool_use" if block.call is not None:
                if not block.call.fragments and block.start.get("input"):
                    arguments = compact(block.start["input"])
                    block.call.add(arguments)
                    events.append(ToolCallArguments(block.part_index, arguments))
                events.append(self._check.completed(block.call))
            case _:
                self._own(block, events)

    def _own(self, block: _Block, events: list[ProviderEvent]) -> None:
        """A block that is not ours to read: server-side tools, their results, what is new.

        One that was cut within its input is left out, as the end of the answer will say: nobody can use it.
        """
        whole = {**block.start, **block.added}
        if block.input_json:
            try:
                whole["input"] = parse_object("".join(block.input_json).encode())
            except NotJson:
                return
        self._keep(block.part_index, block.kind, whole, events)

    def _keep(self, part_index: int, kind: str, block: Any, events: list[ProviderEvent]) -> None:
        if (opaque := kept_block(self._issuer, kind, block)) is not None:
            events.append(OpaqueAdded(part_index, opaque))
        else:
            self.unknown += 1

    def _end(self, events: list[ProviderEvent]) -> None:
        if self._reason is None:
            raise self.too_short()
        # The message is whole, so its blocks are, also those of servers that do not say so of each.
        for index in self._blocks:
            self._block_stop(index, events)
        self.whole = True
        if not self._is_counted and (usage := accounting.anthropic_usage(self._usage)) is not None:
            events.append(UsageUpdated(replace(usage, estimated=True)))
        if self._explanation:
            events.append(RefusalDelta(self._parts.of("refusal"), self._explanation))
        reason = _REASONS.get(self._reason, FinishReason.OTHER)
        events.append(Stopped(reason, self._reason, self._response_id, self._response_model))


def _refused(error: Any) -> Refused:
    said = error_body.refused(500, error)
    return replace(said, status=STATUS_OF_TYPE.get(said.type, 500))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value
