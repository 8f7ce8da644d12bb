"""Responses answers: items, each begun, added to and done, and a last event with all of them."""

from collections.abc import Mapping
from typing import Any

from janus_inference import accounting
from janus_inference.dialects.json_text import compact, parse_object
from janus_inference.dialects.openai_responses_content import citation, logprob, string
from janus_inference.dialects.openai_responses_errors import refused
from janus_inference.dialects.openai_responses_events import REPEATED, content_index, place_of, thought_key
from janus_inference.dialects.openai_responses_items import CALL, MESSAGE, REASONING, Item, kept, proof, waits
from janus_inference.dialects.parts import CallCheck, Numbering, OpenCall, counted, kept_block, kept_proof, reported
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
    Usage,
)
from janus_inference.provider_errors import ProviderFailure, broken, classify

_INCOMPLETE = {
    "max_output_tokens": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_TERMINAL = ("completed", "incomplete", "failed", "cancelled")


class ResponsesReader(StreamReader):
    """Reads one answer; see ``Reader``. Only a terminal event makes a stream whole.

    Deltas are passed on as they come. What an event that ends a text, an item
    or the answer says beyond them is passed on then, since servers differ in
    which of these events they send. ``logprobs``: they were asked for.
    """

    dialect = "openai_responses"

    def __init__(self, provider: str, model: str, issuer: str, calls: CallCheck, *, logprobs: bool = True) -> None:
        super().__init__(provider)
        self._model, self._issuer, self._logprobs = model, issuer, logprobs
        self._check = calls
        self._parts = Numbering()
        self._items: list[Item] = []
        self._item_at: dict[object, Item] = {}
        self._response_id = self._response_model = ""
        self._tier: object = None
        self._usage: Usage | None = None
        self._calls = 0
        self._refused = self._waits = False

    def used(self) -> Usage | None:
        return counted(self._usage, self._tier)

    def body(self, data: bytes) -> list[ProviderEvent]:
        events: list[ProviderEvent] = []
        try:
            answer = parse_object(data)
            if "output" not in answer:
                raise classify(self._provider, self._model, refused(answer.get("error")))
            self._begun(answer)
            self._end(str(answer.get("status") or "completed"), answer, events)
        except WRONG_SHAPE:
            raise broken(self._provider, "the answer is not of the expected form") from None
        except ProviderFailure as failure:
            if not events:
                raise
            self.failure = failure
        return events

    def _event(self, name: bytes, data: bytes, events: list[ProviderEvent]) -> None:
        if data == b"[DONE]":
            raise self.too_short()
        event = parse_object(data, self._halves)
        kind = event.get("type") or name.decode("utf-8", "replace") or ("error" if "error" in event else "")
        match kind:
            case "response.output_text.delta":
                self._text(
                    self._at(event, MESSAGE, events),
                    content_index(event),
                    event["delta"],
                    events,
                    event.get("logprobs"),
                )
            case "response.function_call_arguments.delta":
                self._arguments(self._at(event, CALL, events), string(event["delta"]), events)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                self._thought(kind, event, event["delta"], events)
            case "response.refusal.delta":
                self._refusal(self._at(event, MESSAGE, events), content_index(event), event["delta"], events)
            case "response.output_text.done":
                self._all_text(self._at(event, MESSAGE, events), content_index(event), event, events)
            case "response.refusal.done":
                item, at = self._at(event, MESSAGE, events), content_index(event)
                self._refusal(item, at, self._rest(item, at, event.get("refusal")), events)
            case "response.reasoning_summary_text.done" | "response.reasoning_text.done":
                item = self._at(event, REASONING, events)
                self._thought(kind, event, self._rest(item, thought_key(kind, event), event.get("text")), events)
            case "response.function_call_arguments.done":
                self._all_arguments(self._at(event, CALL, events), event.get("arguments"), events)
            case "response.output_text.annotation.added":
                self._annotation(event, events)
            case "response.output_item.added":
                self._added(place_of(event), event["item"], events)
            case "response.output_item.done":
                begun, said = self._item_at.get(place_of(event)), event["item"]
                if begun is None or begun.done:
                    begun = self._added(place_of(event), said, events)
                self._done(begun, said, events)
            case "response.created":
                self._begun(event["response"])
            case "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled":
                answer, ending = event["response"], kind.rpartition(".")[2]
                self._begun(answer)
                # Some servers end every answer alike and say in its status how it went.
                status = answer.get("status")
                self._end(status if ending == "completed" and status in _TERMINAL else ending, answer, events)
            case "error":
                raise classify(self._provider, self._model, refused(event))
            case _ if kind not in REPEATED:
                self.unknown += 1

    def _begun(self, answer: Mapping[str, Any]) -> None:
        if isinstance(identity := answer.get("id"), str):
            self._response_id = identity
        if isinstance(model := answer.get("model"), str):
            self._response_model = model
        if tier := answer.get("service_tier"):
            self._tier = tier

    def _at(self, event: Mapping[str, Any], kind: str, events: list[ProviderEvent]) -> Item:
        """The item that an event is about; servers that begin none by themselves have it begun here."""
        item = self._item_at.get(place_of(event))
        if item is None:
            return self._added(place_of(event), {"type": kind, "id": event.get("item_id")}, events)
        return item

    def _added(self, place: object, said: Mapping[str, Any], events: list[ProviderEvent]) -> Item:
        item = Item(string(said["type"]), str(said.get("id") or ""))
        if item.kind == CALL:
            name = string(said["name"])
            item.keeps = self._reserve(item, said)
            call_id = string(said.get("call_id") or item.id or f"call_{self._calls}")
            item.call = OpenCall(self._parts.of(item), call_id, name)
            self._calls += 1
            events.append(self._check.begun(item.call))
        elif item.kind == MESSAGE:
            item.keeps = self._reserve(item, said)
        else:
            self._parts.of(item)
        self._items.append(item)
        self._item_at[place] = item
        return item

    def _reserve(self, item: Item, said: Mapping[str, Any]) -> bool:
        """A place before the item's own part, for what is kept beside it."""
        if kept(item.kind, said):
            self._parts.of((item, "kept"))
            return True
        return False

    def _rest(self, item: Item, key: object, whole: Any) -> str:
        """What a whole text says beyond the deltas that came of it."""
        return string(whole)[item.said.get(key, 0) :] if whole else ""

    def _text(self, item: Item, at: int, text: Any, events: list[ProviderEvent], logprobs: Any = None) -> None:
        if text:
            item.said[at] = item.said.get(at, 0) + len(text)
            tokens = tuple(map(logprob, logprobs)) if logprobs and self._logprobs else ()
            events.append(TextDelta(self._parts.of((item, at)), string(text), tokens))

    def _all_text(self, item: Item, at: int, said: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        # These are the tokens of all of it: beside a rest they would come twice.
        logprobs = None if item.said.get(at) else said.get("logprobs")
        self._text(item, at, self._rest(item, at, said.get("text")), events, logprobs)

    def _refusal(self, item: Item, at: int, text: Any, events: list[ProviderEvent]) -> None:
        if text:
            self._refused = True
            item.said[at] = item.said.get(at, 0) + len(text)
            events.append(RefusalDelta(self._parts.of((item, at)), string(text)))

    def _thought(self, kind: str, event: Mapping[str, Any], text: Any, events: list[ProviderEvent]) -> None:
        self._reasoning(self._at(event, REASONING, events), thought_key(kind, event), text, events)

    def _reasoning(self, item: Item, key: tuple[str, int], text: Any, events: list[ProviderEvent]) -> None:
        """``key`` says of which form the text is, and which of its paragraphs."""
        if not text:
            return
        form = key[0]
        first = key not in item.said
        item.said[key] = item.said.get(key, 0) + len(text)
        if first and any(other[0] == form for other in item.said if isinstance(other, tuple) and other != key):
            text = f"\n\n{text}"
        index = self._parts.of(item)
        said = string(text)
        events.append(ReasoningDelta(index, summary=said) if form == "summary" else ReasoningDelta(index, text=said))

    def _arguments(self, item: Item, piece: str, events: list[ProviderEvent]) -> None:
        if piece and item.call is not None:
            item.call.add(piece)
            events.append(ToolCallArguments(item.call.part_index, piece))

    def _all_arguments(self, item: Item, whole: Any, events: list[ProviderEvent]) -> None:
        if not whole or item.call is None:
            return
        # A few servers send the parsed arguments instead of their text.
        text = whole if isinstance(whole, str) else compact(whole)
        came = "".join(item.call.fragments)
        if text.startswith(came):
            self._arguments(item, text[len(came) :], events)
        else:
            item.call.fragments = [text]

    def _annotation(self, event: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        item, at = self._at(event, MESSAGE, events), content_index(event)
        item.cited[at] = item.cited.get(at, 0) + 1
        self._cite(item, at, event["annotation"], events)

    def _cite(self, item: Item, at: int, said: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        events.append(CitationAdded(citation(said, self._parts.of((item, at)))))

    def _done(self, item: Item, said: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        """The item is whole; ``said`` is all of it."""
        item.done = True
        if item.keeps and (fields := kept(item.kind, said)):
            if item.call is not None:
                fields["call_id"] = item.call.call_id
            self._keep(self._parts.of((item, "kept")), item.kind, fields, events)
        match item.kind:
            case "message":
                for at, content in enumerate(said.get("content") or ()):
                    self._content(item, at, content, events)
            case "function_call" if item.call is not None:
                self._all_arguments(item, said.get("arguments"), events)
                events.append(self._check.completed(item.call))
            case "reasoning":
                for form, parts in (("summary", said.get("summary")), ("text", said.get("content"))):
                    for at, part in enumerate(parts or ()):
                        key = (form, at)
                        self._reasoning(item, key, self._rest(item, key, part["text"]), events)
                events.append(ReasoningSignature(self._parts.of(item), kept_proof(proof(said)), self._issuer))
            case kind:
                self._waits |= waits(said)
                self._keep(self._parts.of(item), kind, said, events)

    def _keep(self, part_index: int, kind: str, block: Any, events: list[ProviderEvent]) -> None:
        if (opaque := kept_block(self._issuer, kind, block)) is not None:
            events.append(OpaqueAdded(part_index, opaque))
        else:
            self.unknown += 1

    def _content(self, item: Item, at: int, content: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        match content["type"]:
            case "output_text":
                self._all_text(item, at, content, events)
                for note in (content.get("annotations") or ())[item.cited.get(at, 0) :]:
                    self._cite(item, at, note, events)
            case "refusal":
                self._refusal(item, at, self._rest(item, at, content.get("refusal")), events)
            case _:
                self.unknown += 1

    def _end(self, status: str, answer: Mapping[str, Any], events: list[ProviderEvent]) -> None:
        """The answer is over; ``status`` is how it went."""
        self._remaining(answer.get("output") or (), events)
        if usage := answer.get("usage"):
            self._usage = accounting.openai_responses_usage(usage, self._tier)
            events += reported(self._usage)
        if status == "failed":
            raise classify(self._provider, self._model, refused(answer.get("error")))
        if status == "cancelled":
            raise broken(self._provider, "it was cancelled at the provider")
        if status in ("queued", "in_progress"):
            raise broken(self._provider, "the provider has not made it yet")
        self.whole = True
        word = str(answer.get("status") or status)
        if status == "incomplete":
            word = str((answer.get("incomplete_details") or {}).get("reason") or word)
            reason = _INCOMPLETE.get(word, FinishReason.OTHER)
        else:
            reason = self._reason(status)
        events.append(Stopped(reason, word, self._response_id, self._response_model))

    def _reason(self, status: str) -> FinishReason:
        if self._calls:
            return FinishReason.TOOL_CALLS
        if self._waits or status not in ("completed", "complete"):
            return FinishReason.OTHER
        return FinishReason.REFUSAL if self._refused else FinishReason.STOP

    def _remaining(self, output: Any, events: list[ProviderEvent]) -> None:
        """What was never said to be done, and what was never said at all."""
        known = {item.id: item for item in self._items if item.id}
        begun = list(self._items)
        for at, said in enumerate(output):
            item = known.get(str(said.get("id") or ""))
            if item is None and at < len(begun):
                item = begun[at]
            if item is None:
                item = self._added(("output", at), said, events)
            if not item.done and item.kind == said["type"]:
                self._done(item, said, events)
        for item in self._items:
            if item.done:
                continue
            item.done = True
            if item.call is not None:
                events.append(self._check.completed(item.call))
            elif item.kind == REASONING and item.said:
                # Without its proof; this says whose it is.
                events.append(ReasoningSignature(self._parts.of(item), b"", self._issuer))
