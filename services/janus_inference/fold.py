"""The whole answer that a stream of events adds up to."""

from collections.abc import Iterable
from dataclasses import replace

from janus_inference.events import (
    Answer,
    CitationAdded,
    Event,
    Failed,
    Finished,
    OpaqueAdded,
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    RouteChanged,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
    UsageUpdated,
)
from janus_inference.model import (
    MOST_PARTS,
    Citation,
    Message,
    Part,
    Reasoning,
    Refusal,
    Role,
    Text,
)


class Fold:
    """Add the events of one generation, then ask for the answer."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._route: RouteChanged | None = None
        self._logprobs: list[TokenLogprob] = []
        self._finished: Finished | None = None
        self._texts: dict[int, list[str]] = {}
        self._refusals: dict[int, list[str]] = {}
        self._thoughts: dict[int, list[ReasoningDelta]] = {}
        self._signatures: dict[int, ReasoningSignature] = {}
        self._whole: dict[int, Part] = {}
        self._citations: list[Citation] = []

    def add(self, event: Event) -> None:
        """Take the next event. Raises the error of a generation that failed."""
        match event:
            case TextDelta():
                self._texts.setdefault(event.part_index, []).append(event.text)
                self._logprobs += event.logprobs
            case ReasoningDelta():
                self._thoughts.setdefault(event.part_index, []).append(event)
            case ReasoningSignature():
                self._signatures[event.part_index] = event
            case RefusalDelta():
                self._refusals.setdefault(event.part_index, []).append(event.text)
            case ToolCallCompleted(part_index=index, call=call):
                self._whole[index] = call
            case OpaqueAdded(part_index=index, part=part):
                self._whole[index] = part
            case CitationAdded(citation=citation):
                self._citations.append(citation)
            case Started():
                self._started = event
            case RouteChanged():
                self._route = event
            case Finished():
                self._finished = event
            case Failed():
                raise event.error
            case ToolCallStarted() | ToolCallArguments() | UsageUpdated():
                pass  # said again, whole, by a later event

    def answer(self) -> Answer:
        """The answer. Raises ValueError before the generation finished."""
        if self._started is None or self._finished is None:
            raise ValueError("the generation has not finished")
        provider, model, attempts = self._started.provider, self._started.model, self._started.attempt
        if self._route is not None:
            provider, _, model = self._route.to.partition("/")
            attempts = self._route.attempt
        return Answer(
            generation_id=self._started.generation_id,
            message=Message(Role.ASSISTANT, tuple(self._parts())),
            reason=self._finished.reason,
            provider_reason=self._finished.provider_reason,
            usage=self._finished.usage,
            provider=provider,
            model=model,
            attempts=attempts,
            timings=self._finished.timings,
            cost=self._finished.cost,
            from_cache=self._finished.from_cache,
            logprobs=tuple(self._logprobs),
        )

    def _parts(self) -> Iterable[Part]:
        """In order of their indexes; citations follow, pointing at where their text came to stand."""
        made: dict[int, Part] = dict(self._whole)
        made |= {index: Text("".join(texts)) for index, texts in self._texts.items()}
        made |= {index: Refusal("".join(texts)) for index, texts in self._refusals.items()}
        for index in self._thoughts.keys() | self._signatures.keys():
            made[index] = self._reasoning(index)
        places = {index: place for place, index in enumerate(sorted(made))}
        for index in sorted(made):
            yield made[index]
        for cited in self._citations[: max(0, MOST_PARTS - len(made))]:
            yield replace(cited, part_index=places.get(cited.part_index, 0))

    def _reasoning(self, index: int) -> Reasoning:
        deltas, proof = self._thoughts.get(index, []), self._signatures.get(index)
        text = [delta.text for delta in deltas if delta.text is not None]
        summary = [delta.summary for delta in deltas if delta.summary is not None]
        redacted = [delta.redacted for delta in deltas if delta.redacted is not None]
        return Reasoning(
            text="".join(text) if text else None,
            summary="".join(summary) if summary and not text else None,
            redacted=b"".join(redacted) if redacted and not text and not summary else None,
            signature=proof.signature if proof else b"",
            issuer=proof.issuer if proof else "",
        )
