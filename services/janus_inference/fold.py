"""The whole answer that a stream of events adds up to."""

from collections.abc import Iterable

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
    Started,
    TextDelta,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallStarted,
    UsageUpdated,
)
from janus_inference.model import (
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
        return Answer(
            generation_id=self._started.generation_id,
            message=Message(Role.ASSISTANT, tuple(self._parts())),
            reason=self._finished.reason,
            provider_reason=self._finished.provider_reason,
            usage=self._finished.usage,
            provider=self._started.provider,
            model=self._started.model,
            attempts=self._started.attempt,
            timings=self._finished.timings,
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
        for cited in self._citations:
            place = places.get(cited.part_index, 0)
            yield Citation(cited.start, cited.end, cited.title, cited.uri, cited.quote, place)

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
