"""Chat Completions answers, from OpenAI and from the servers that speak like it."""

from collections.abc import Mapping
from typing import Any

from janus_inference import accounting
from janus_inference.dialects.json_text import compact, parse_object
from janus_inference.dialects.parts import CallCheck, Numbering, OpenCall, citation
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
    TokenLogprob,
    ToolCallArguments,
    ToolCallStarted,
    UsageUpdated,
)
from janus_inference.model import Citation, Opaque
from janus_inference.provider_errors import STATUS_OF_TYPE, Refused, broken, classify, is_flagged, status_in

_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    # Words of single servers: Mistral, Z.ai.
    "model_length": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "sensitive": FinishReason.CONTENT_FILTER,
}
# The answer is not whole, say Z.ai, DeepSeek, vLLM and OpenRouter.
_CUT = frozenset({"network_error", "insufficient_system_resource", "abort", "error"})
# A chunk without any of these is of a kind that this version does not know.
_KNOWN_FIELDS = frozenset({"choices", "usage", "x_groq"})
# Fields beside the content that only their issuer understands.
_OPAQUE_FIELDS = ("executed_tools",)


class ChatReader(StreamReader):
    """Reads one answer; see ``Reader``.

    ``needs_done``: the stream must end with `[DONE]`. Without it an orderly
    end after a finish reason is taken as the end, since some servers leave the
    marker out.
    """

    dialect = "openai_chat"

    def __init__(self, provider: str, model: str, issuer: str, calls: CallCheck, *, needs_done: bool = True) -> None:
        super().__init__(provider)
        self._model, self._issuer = model, issuer
        self._check = calls
        self._needs_done = needs_done
        self._parts = Numbering()
        self._calls: list[OpenCall] = []
        self._call_at: dict[int, OpenCall] = {}
        self._reasoning_details: dict[tuple[object, object], dict[str, Any]] = {}
        self._response_id = self._response_model = ""
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
        if self.failure is not None:
            raise self.failure
        return events

    def _event(self, name: bytes, data: bytes, events: list[ProviderEvent]) -> None:
        if data != b"[DONE]":
            chunk = parse_object(data)
            if name == b"error" and "error" not in chunk:
                # A few servers name the event instead of wrapping the error.
                raise classify(self._provider, self._model, _refused(chunk))
            self._chunk(chunk, events)
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
        if _KNOWN_FIELDS.isdisjoint(chunk):
            self.unknown += 1
            return
        if not self._response_id and isinstance(identity := chunk.get("id"), str):
            self._response_id = identity
            if isinstance(model := chunk.get("model"), str):
                self._response_model = model
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue  # only one answer is asked for
            delta = choice.get("delta") or choice.get("message")
            if delta:
                self._delta(delta, events, choice.get("logprobs"))
            if reason := choice.get("finish_reason"):
                if choice_error := choice.get("error"):
                    raise classify(self._provider, self._model, _refused(choice_error))
                self._reason = str(reason)
        usage = chunk.get("usage")
        if not usage and (extra := chunk.get("x_groq")):
            usage = extra.get("usage")
        if usage:
            self._usage = usage

    def _delta(self, delta: Mapping[str, Any], events: list[ProviderEvent], logprobs: Any = None) -> None:
        if len(delta) == 1 and not logprobs and isinstance(text := delta.get("content"), str):
            # Nearly all of a stream is this.
            if text:
                events.append(TextDelta(self._parts.of("text"), text))
            return
        # Some servers say the same reasoning under both names.
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            events.append(ReasoningDelta(self._parts.of("reasoning"), text=_text(reasoning)))
        tokens = _logprobs(logprobs) if logprobs else ()
        content = delta.get("content")
        if isinstance(content, list):
            content = self._pieces(content, events)
        if content or tokens:
            events.append(TextDelta(self._parts.of("text"), _text(content or ""), tokens))
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

    def _pieces(self, content: list[Any], events: list[ProviderEvent]) -> str:
        """The text of content in pieces, as Mistral sends it; thinking among them is reasoning."""
        texts = []
        for piece in content:
            if piece["type"] == "text":
                texts.append(_text(piece["text"]))
            elif piece["type"] == "thinking":
                said = piece["thinking"]
                thought = said if isinstance(said, str) else "".join(_text(each["text"]) for each in said)
                if thought:
                    events.append(ReasoningDelta(self._parts.of("reasoning"), text=thought))
            else:
                self.unknown += 1
        return "".join(texts)

    def _tool_call(self, fragment: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        """One fragment of a call.

        A new id begins a new call even where the index says otherwise: some
        servers give every call the index 0, or none. Without ids, a name after
        whole arguments does; where ids repeat, ours tell the calls apart.
        """
        function = fragment.get("function") or {}
        index, call_id = fragment.get("index"), fragment.get("id")
        if isinstance(index, int):
            call = self._call_at.get(index)
        else:
            call = self._calls[-1] if self._calls and not call_id else None
        name, arguments = function.get("name"), function.get("arguments")
        another = call_id != call.given_id if call and call_id else name and arguments and call and call.is_whole()
        if call is None or another:
            if not name:
                raise KeyError("name")
            call = self._begin(call_id and _text(call_id), _text(name), events)
            self._call_at[index if isinstance(index, int) else len(self._calls) - 1] = call
        if arguments:
            # A few servers send the parsed arguments instead of their text.
            piece = arguments if isinstance(arguments, str) else compact(arguments)
            call.fragments.append(piece)
            events.append(ToolCallArguments(call.part_index, piece))

    def _begin(self, given: str | None, name: str, events: list[ProviderEvent]) -> OpenCall:
        number = len(self._calls)
        call_id = given or f"call_{number}"
        if any(call.call_id == call_id for call in self._calls):
            call_id = f"{call_id}_{number}"
        call = OpenCall(self._parts.of(("call", number)), call_id, name, given_id=given or "")
        self._calls.append(call)
        events.append(ToolCallStarted(call.part_index, call.call_id, call.name))
        return call

    def _citation(self, said: Mapping[str, Any]) -> Citation:
        start, end = said.get("start_index"), said.get("end_index")
        return citation(said, self._parts.of("text"), start=start, end=end)

    def _collect_reasoning(self, detail: Mapping[str, Any]) -> None:
        """Joins the fragments of one reasoning block; its signature is needed whole."""
        key = (detail.get("type"), detail.get("index"))
        known = self._reasoning_details.setdefault(key, {})
        for name, value in detail.items():
            joins = name in ("text", "summary", "data") and isinstance(known.get(name), str) and value
            known[name] = known[name] + value if joins else value if value is not None else known.get(name)

    def _end(self, events: list[ProviderEvent]) -> None:
        if self._reason in _CUT:
            if self._usage:
                events.append(UsageUpdated(accounting.openai_usage(self._usage)))
            self.failure = broken(self._provider, "the provider cut the answer short")
            return
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
        events.append(Stopped(reason, word, self._response_id, self._response_model))


def _refused(error: Any) -> Refused:
    """An error inside a stream. Its status is in its code, its type, or not said."""
    if not isinstance(error, Mapping):
        return Refused(500)
    code, kind = error.get("code"), str(error.get("type") or "")
    if is_flagged(error):
        code = "content_filter"
    status = error.get("status_code")
    if not isinstance(status, int):
        status = code if isinstance(code, int) else status_in(code)
    if status is None:
        status = STATUS_OF_TYPE.get(str(code), STATUS_OF_TYPE.get(kind, 500))
    return Refused(
        status=status,
        code=code if isinstance(code, str) else "",
        type=kind,
        param=str(error.get("param") or ""),
        message=str(error.get("message") or ""),
    )


def _logprobs(said: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    """The tokens of the text; those of a refusal are left out."""
    return tuple(
        TokenLogprob(
            _text(token["token"]),
            float(token["logprob"]),
            tuple((_text(other["token"]), float(other["logprob"])) for other in token.get("top_logprobs") or ()),
        )
        for token in said.get("content") or ()
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value
