"""Chat Completions answers, from OpenAI and from the servers that speak like it."""

from collections.abc import Mapping
from typing import Any

from janus_inference import accounting
from janus_inference.dialects.json_text import compact, parse_object
from janus_inference.dialects.parts import CallCheck, Numbering, OpenCall
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
    ToolCallStarted,
    UsageUpdated,
)
from janus_inference.model import Citation, Opaque
from janus_inference.provider_errors import STATUS_OF_TYPE, Refused, broken, classify

_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
# Fields beside the content that only their issuer understands.
_OPAQUE_FIELDS = ("executed_tools",)


class ChatReader(StreamReader):
    """Reads one answer; see ``Reader``.

    ``needs_done``: the stream must end with `[DONE]`. Without it an orderly
    end after a finish reason is taken as the end, since some servers leave the
    marker out.
    """

    def __init__(self, provider: str, model: str, issuer: str, calls: CallCheck, *, needs_done: bool = True) -> None:
        super().__init__(provider)
        self._model, self._issuer = model, issuer
        self._check = calls
        self._needs_done = needs_done
        self._parts = Numbering()
        self._calls: list[OpenCall] = []
        self._call_at: dict[int, OpenCall] = {}
        self._reasoning_details: dict[tuple[object, object], dict[str, Any]] = {}
        self._response_id = ""
        self._reason: str | None = None
        self._refused = False
        self._usage: Mapping[str, Any] = {}

    def body(self, data: bytes) -> list[ProviderEvent]:
        events: list[ProviderEvent] = []
        try:
            answer = parse_object(data)
            self._chunk(answer, events)
        except WRONG_SHAPE:
            raise broken(self._provider, "the answer is not of the expected form") from None
        if self._reason is None:
            raise broken(self._provider, "the answer has no finish reason")
        self._end(events)
        return events

    def _event(self, name: bytes, data: bytes, events: list[ProviderEvent]) -> None:
        if data != b"[DONE]":
            self._chunk(parse_object(data), events)
        elif self._reason is not None:
            self._end(events)
        else:
            raise self.too_short()

    def _ended(self, events: list[ProviderEvent]) -> None:
        if self._reason is not None and not self._needs_done:
            self._end(events)

    def _chunk(self, chunk: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        if error := chunk.get("error"):
            raise classify(self._provider, self._model, _refused(error))
        if not self._response_id and isinstance(identity := chunk.get("id"), str):
            self._response_id = identity
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue  # only one answer is asked for
            delta = choice.get("delta") or choice.get("message")
            if delta:
                self._delta(delta, events)
            if reason := choice.get("finish_reason"):
                if choice_error := choice.get("error"):
                    raise classify(self._provider, self._model, _refused(choice_error))
                self._reason = str(reason)
        usage = chunk.get("usage")
        if not usage and (extra := chunk.get("x_groq")):
            usage = extra.get("usage")
        if usage:
            self._usage = usage

    def _delta(self, delta: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        # Some servers say the same reasoning under both names.
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            events.append(ReasoningDelta(self._parts.of("reasoning"), text=_text(reasoning)))
        if content := delta.get("content"):
            events.append(TextDelta(self._parts.of("text"), _text(content)))
        if refusal := delta.get("refusal"):
            self._refused = True
            events.append(RefusalDelta(self._parts.of("refusal"), _text(refusal)))
        for fragment in delta.get("tool_calls") or ():
            self._tool_call(fragment, events)
        events += [
            CitationAdded(self._citation(note["url_citation"]))
            for note in delta.get("annotations") or ()
            if note.get("type") == "url_citation"
        ]
        for detail in delta.get("reasoning_details") or ():
            self._collect_reasoning(detail)
        for name in _OPAQUE_FIELDS:
            if block := delta.get(name):
                opaque = Opaque(self._issuer, name, compact(block).encode())
                events.append(OpaqueAdded(self._parts.of(object()), opaque))

    def _tool_call(self, fragment: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        """One fragment of a call.

        A new id begins a new call even where the index says otherwise: some
        servers give every call the index 0, or none.
        """
        function = fragment.get("function") or {}
        index, call_id = fragment.get("index"), fragment.get("id")
        if isinstance(index, int):
            call = self._call_at.get(index)
        else:
            call = self._calls[-1] if self._calls and not call_id else None
        if call is None or (call_id and call_id != call.call_id):
            name = function.get("name")
            if not name:
                raise KeyError("name")
            number = len(self._calls)
            part_index = self._parts.of(("call", number))
            call = OpenCall(part_index, _text(call_id or f"call_{number}"), _text(name))
            self._calls.append(call)
            self._call_at[index if isinstance(index, int) else number] = call
            events.append(ToolCallStarted(part_index, call.call_id, call.name))
        if arguments := function.get("arguments"):
            # A few servers send the parsed arguments instead of their text.
            piece = arguments if isinstance(arguments, str) else compact(arguments)
            call.fragments.append(piece)
            events.append(ToolCallArguments(call.part_index, piece))

    def _citation(self, said: Mapping[str, Any]) -> Citation:
        start, end = said.get("start_index"), said.get("end_index")
        return Citation(
            start=start if isinstance(start, int) else 0,
            end=end if isinstance(end, int) else 0,
            title=str(said.get("title") or ""),
            uri=str(said.get("url") or ""),
            quote=str(said.get("content") or ""),
            part_index=self._parts.of("text"),
        )

    def _collect_reasoning(self, detail: Mapping[str, Any]) -> None:
        """Joins the fragments of one reasoning block; its signature is needed whole."""
        key = (detail.get("type"), detail.get("index"))
        known = self._reasoning_details.setdefault(key, {})
        for name, value in detail.items():
            joins = name in ("text", "summary", "data") and isinstance(known.get(name), str) and value
            known[name] = known[name] + value if joins else value if value is not None else known.get(name)

    def _end(self, events: list[ProviderEvent]) -> None:
        self.whole = True
        if "reasoning" in self._parts:
            # No server of this dialect proves its reasoning here; this says whose it is.
            events.append(ReasoningSignature(self._parts.of("reasoning"), b"", self._issuer))
        if self._reasoning_details:
            data = compact(list(self._reasoning_details.values())).encode()
            opaque = Opaque(self._issuer, "reasoning_details", data)
            events.append(OpaqueAdded(self._parts.of("reasoning_details"), opaque))
        events.extend(self._check.completed(call) for call in self._calls)
        if self._usage:
            events.append(UsageUpdated(accounting.openai_usage(self._usage)))
        word = self._reason or ""
        reason = _REASONS.get(word, FinishReason.OTHER)
        if reason is FinishReason.STOP:
            # OpenAI says "stop" for a refusal, and for a call that it was made to make.
            if self._calls:
                reason = FinishReason.TOOL_CALLS
            elif self._refused:
                reason = FinishReason.REFUSAL
        events.append(Stopped(reason, word, self._response_id))


def _refused(error: Any) -> Refused:
    """An error inside a stream. Its status is in its code, its type, or not said."""
    if not isinstance(error, Mapping):
        return Refused(500)
    code, kind = error.get("code"), str(error.get("type") or "")
    status = error.get("status_code")
    if not isinstance(status, int):
        status = code if isinstance(code, int) else None
    if status is None:
        status = STATUS_OF_TYPE.get(str(code), STATUS_OF_TYPE.get(kind, 500))
    return Refused(
        status=status,
        code=code if isinstance(code, str) else "",
        type=kind,
        param=str(error.get("param") or ""),
        message=str(error.get("message") or ""),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value
