"""The whole answer that a stream of events adds up to."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from janus_inference.coalesce import Joined
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
        self._finished: Finished | None = None
        self._deltas = Joined()
        self._signatures: dict[int, ReasoningSignature] = {}
        self._whole: dict[int, Part] = {}
        self._citations: list[Citation] = []

    def add(self, event: Event) -> None:
        """Take the next event. Raises the error of a generation that failed."""
        match event:
            case TextDelta() | ReasoningDelta() | RefusalDelta():
                self._deltas.add(event)
            case ReasoningSignature():
                self._signatures[event.part_index] = event
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
        logprobs = [each for delta in self._deltas if isinstance(delta, TextDelta) for each in delta.logprobs]
        return Answer(
            generation_id=self._started.generation_id,
            # A message of no parts could not be sent back.
            message=Message(Role.ASSISTANT, tuple(self._parts()) or (Text(""),)),
            reason=self._finished.reason,
            provider_reason=self._finished.provider_reason,
            usage=self._finished.usage,
            provider=provider,
            model=model,
            attempts=attempts,
            timings=self._finished.timings,
            cost=self._finished.cost,
            from_cache=self._finished.from_cache,
            logprobs=tuple(logprobs),
        )

    def _parts(self) -> Iterable[Part]:
        """In order of their indexes; citations follow, pointing at where their text came to stand."""
        texts: dict[int, list[str]] = {}
        refusals: dict[int, list[str]] = {}
        thoughts: dict[int, list[ReasoningDelta]] = {index: [] for index in self._signatures}
        for delta in self._deltas:
            match delta:
                case TextDelta(part_index=index, text=text):
                    texts.setdefault(index, []).append(text)
                case RefusalDelta(part_index=index, text=text):
                    refusals.setdefault(index, []).append(text)
                case ReasoningDelta(part_index=index):
                    thoughts.setdefault(index, []).append(delta)
        made: dict[int, Part] = dict(self._whole)
        made |= {index: Text("".join(pieces)) for index, pieces in texts.items()}
        made |= {index: Refusal("".join(pieces)) for index, pieces in refusals.items()}
        made |= {index: _reasoning(deltas, self._signatures.get(index)) for index, deltas in thoughts.items()}
        places = {index: place for place, index in enumerate(sorted(made))}
        for index in sorted(made):
            yield made[index]
        for cited in self._citations[: max(0, MOST_PARTS - len(made))]:
            yield replace(cited, part_index=places.get(cited.part_index, 0))


def _reasoning(deltas: Sequence[ReasoningDelta], proof: ReasoningSignature | None) -> Reasoning:
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
