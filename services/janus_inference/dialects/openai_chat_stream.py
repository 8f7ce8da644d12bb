"""Chat Completions answers, from OpenAI and from the servers that speak like it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from janus_inference import accounting
from janus_inference.dialects import error_body
from janus_inference.dialects.json_text import parse_object
from janus_inference.dialects.openai_chat_calls import ToolCalls
from janus_inference.dialects.openai_chat_reasoning import ReasoningDetails
from janus_inference.dialects.parts import CallCheck, Numbering, citation, counted, kept_block, reported
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
    Usage,
)
from janus_inference.model import Citation
from janus_inference.provider_errors import STATUS_OF_TYPE, Refused, broken, classify, status_in

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
    marker out. ``logprobs``: they were asked for; some servers send them anyhow.
    """

    dialect = "openai_chat"

    def __init__(
        self,
        provider: str,
        model: str,
        issuer: str,
        calls: CallCheck,
        *,
        needs_done: bool = True,
        logprobs: bool = True,
    ) -> None:
        super().__init__(provider)
        self._model, self._issuer = model, issuer
        self._needs_done, self._logprobs = needs_done, logprobs
        self._parts = Numbering()
        # The part that goes on, and those of text and of reasoning so far.
        self._kind, self._part = "", -1
        self._texts: list[int] = []
        self._thoughts: list[int] = []
        self._calls = ToolCalls(self._parts, calls, issuer)
        self._reasoning_details = ReasoningDetails()
        self._audio: dict[str, Any] = {}
        self._response_id = self._response_model = ""
        self._reason: str | None = None
        self._refused = False
        self._usage: Mapping[str, Any] = {}
        self._tier: object = None

    def used(self) -> Usage | None:
        return counted(accounting.openai_usage(self._usage, self._tier), self._tier)

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
            chunk = parse_object(data, self._halves)
            if name == b"error" and "error" not in chunk:
                # A few servers name the event instead of wrapping the error.
                raise classify(self._provider, self._model, refused_within(chunk))
            self._chunk(chunk, events)
            if self._alike.wants(data) and (delta := _only_delta(chunk)):
                self._learn(name, data, chunk, delta)
        elif self._reason is not None:
            self._end(events)
        else:
            raise self.too_short()

    def _learn(self, name: bytes, data: bytes, chunk: dict[str, Any], delta: dict[str, Any]) -> None:
        """The next chunk like this one need not be parsed, where it is nothing but some text or reasoning."""
        said = [key for key, value in delta.items() if value and key != "role"]
        if said == ["content"] and isinstance(delta["content"], str):
            self._alike.learn(name, data, chunk, delta, "content", partial(TextDelta, self._part))
        elif said in (["reasoning_content"], ["reasoning"]):
            part = self._part
            self._alike.learn(name, data, chunk, delta, said[0], lambda text: ReasoningDelta(part, text=text))

    def _ended(self, events: list[ProviderEvent]) -> None:
        if self._reason is not None and not self._needs_done:
            self._end(events)

    def _chunk(self, chunk: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        if error := chunk.get("error"):
            raise classify(self._provider, self._model, refused_within(error))
        if _KNOWN_FIELDS.isdisjoint(chunk):
            self.unknown += 1
            return
        if not self._response_id and isinstance(identity := chunk.get("id"), str):
            self._response_id = identity
            if isinstance(model := chunk.get("model"), str):
                self._response_model = model
        if tier := chunk.get("service_tier"):
            self._tier = tier
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue  # only one answer is asked for
            logprobs = choice.get("logprobs") if self._logprobs else None
            if delta := choice.get("delta"):
                self._delta(delta, events, logprobs)
            elif message := choice.get("message"):
                self._delta(message, events, logprobs, whole=True)
            if reason := choice.get("finish_reason"):
                if choice_error := choice.get("error"):
                    raise classify(self._provider, self._model, refused_within(choice_error))
                self._reason = str(reason)
        usage = chunk.get("usage")
        if not usage and (extra := chunk.get("x_groq")):
            usage = extra.get("usage")
        # A count of nothing, which some servers end with, does not replace what was counted before.
        if usage and (usage.get("prompt_tokens") or usage.get("completion_tokens")):
            self._usage = usage

    def _delta(
        self, delta: Mapping[str, Any], events: list[ProviderEvent], logprobs: Any = None, *, whole: bool = False
    ) -> None:
        """More of the answer, or a ``whole`` message, of which nothing is a fragment."""
        if len(delta) == 1 and not logprobs and isinstance(text := delta.get("content"), str):
            # Nearly all of a stream is this.
            if text:
                events.append(TextDelta(self._at("text", events), text))
            return
        # Some servers say the same reasoning under both names.
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            events.append(ReasoningDelta(self._at("reasoning", events), text=_text(reasoning)))
        tokens = _logprobs(logprobs) if logprobs else ()
        content = delta.get("content")
        if isinstance(content, list):
            content = self._pieces(content, events)
        if content or tokens:
            events.append(TextDelta(self._at("text", events), _text(content or ""), tokens))
        if refusal := delta.get("refusal"):
            self._refused = True
            events.append(RefusalDelta(self._at("refusal", events), _text(refusal)))
        calls = delta.get("tool_calls")
        if not calls and (legacy := delta.get("function_call")):
            # The only call, in the words that came before `tool_calls`.
            calls = [{"index": 0, "function": legacy}]
        if calls:
            self._calls.add(calls, events, whole=whole)
            self._kind = "call"
            self._alike.forget()
        for note in delta.get("annotations") or ():
            if note.get("type") == "url_citation":
                events.append(CitationAdded(self._citation(note["url_citation"], events)))
            else:
                self._opaque("annotations", {"annotations": [note]}, events)
        for detail in delta.get("reasoning_details") or ():
            self._reasoning_details.add(detail, whole=whole)
        if audio := delta.get("audio"):
            self._add_audio(audio)
        for name in _OPAQUE_FIELDS:
            if block := delta.get(name):
                self._opaque(name, block, events)

    def _at(self, kind: str, events: list[ProviderEvent]) -> int:
        """The part that more of this kind belongs to: the last one, or a new one where another kind came between."""
        if kind != self._kind:
            self._calls.tell(events)
            self._kind, self._part = kind, self._parts.next()
            self._alike.forget()
            if kind == "text":
                self._texts.append(self._part)
            elif kind == "reasoning":
                self._thoughts.append(self._part)
        return self._part

    def _opaque(self, kind: str, block: Any, events: list[ProviderEvent]) -> None:
        if (opaque := kept_block(self._issuer, kind, block)) is not None:
            events.append(OpaqueAdded(self._parts.next(), opaque))
        else:
            self.unknown += 1

    def _add_audio(self, said: Mapping[str, Any]) -> None:
        """Joins the pieces of sound, each of them bytes in base64, and of what is said in it."""
        for name, value in said.items():
            if value is None:
                continue
            if name == "data":
                self._audio.setdefault(name, []).append(_text(value))
            elif name == "transcript":
                self._audio[name] = self._audio.get(name, "") + _text(value)
            else:
                self._audio[name] = value

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
                    events.append(ReasoningDelta(self._at("reasoning", events), text=thought))
            else:
                self.unknown += 1
        return "".join(texts)

    def _citation(self, said: Mapping[str, Any], events: list[ProviderEvent]) -> Citation:
        part = self._texts[-1] if self._texts else self._at("text", events)
        if len(self._texts) > 1:
            # Its places are those of all the text, which is in several parts here.
            return citation(said, part)
        return citation(said, part, start=said.get("start_index"), end=said.get("end_index"))

    def _end(self, events: list[ProviderEvent]) -> None:
        if self._reason in _CUT:
            self.failure = broken(self._provider, "the provider cut the answer short")
            return
        completed: list[ProviderEvent] = []
        if not self._calls.complete(completed):
            self.failure = broken(self._provider, "a tool call has no name")
            return
        self.unknown += self._calls.unknown
        self.whole = True
        # No server of this dialect proves its reasoning here; this says whose it is.
        events += [ReasoningSignature(part, b"", self._issuer) for part in self._thoughts]
        if self._reasoning_details:
            self._opaque("reasoning_details", self._reasoning_details.blocks, events)
        if self._audio:
            self._opaque("audio", self._audio, events)
        events += completed
        events += reported(self.used())
        word = self._reason or ""
        reason = _REASONS.get(word, FinishReason.OTHER)
        if reason is FinishReason.STOP:
            # OpenAI says "stop" for a refusal, and for a call that it was made to make.
            if self._calls:
                reason = FinishReason.TOOL_CALLS
            elif self._refused:
                reason = FinishReason.REFUSAL
        events.append(Stopped(reason, word, self._response_id, self._response_model))


def _only_delta(chunk: Mapping[str, Any]) -> dict[str, Any] | None:
    """The delta of a chunk that says nothing beside it."""
    choices = chunk.get("choices")
    if not choices or len(choices) > 1 or chunk.get("usage") or chunk.get("x_groq"):
        return None
    choice = choices[0]
    if choice.get("index") or choice.get("finish_reason") or choice.get("logprobs"):
        return None
    delta: dict[str, Any] | None = choice.get("delta")
    return delta


def refused_within(error: Any) -> Refused:
    """An error inside an answer. Its status is in its code, its type, or not said."""
    said = error_body.refused(500, error)
    if not isinstance(error, Mapping):
        return said
    code, status = error.get("code"), error.get("status_code")
    if not isinstance(status, int):
        status = code if isinstance(code, int) and 400 <= code < 600 else status_in(code)
    if status is None:
        status = STATUS_OF_TYPE.get(said.code, STATUS_OF_TYPE.get(said.type, 500))
    return replace(said, status=status)


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
