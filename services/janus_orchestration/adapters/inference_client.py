"""The inference service as orchestration's model."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Set
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import grpc

from janus_api.content.v1 import message_pb2, usage_pb2
from janus_api.inference.v1 import event_pb2, model_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_kit.clock import Clock
from janus_kit.errors import DeadlineExceeded, NotFound, ResourceExhausted, Unavailable
from janus_kit.rpc_errors import from_rpc, from_status
from janus_orchestration.model import MOST_BYTES, Answer, Failure, ModelEvent, ModelEventKind, Prompt, Usage
from janus_orchestration.wire.content import MOST_PARTS, ROLE_NUMBERS, completed, pieces, usage_from

_STATUS_WAIT_S = 1.0
_NOTES = frozenset({"started", "route_changed", "tool_call_completed"})

# The bound of a refusal in janus.content.v1.
_MOST_REFUSAL_BYTES = 64 * 1024

# Finish reasons after which the turn is not over; see FinishReason.
_UNSUPPORTED = {event_pb2.FINISH_REASON_PAUSE: "finish_reason.pause"}


class InferenceClient:
    """Model calls over a channel to the inference service."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._stub = rpc.InferenceServiceStub(channel)
        self._clock = clock

    @asynccontextmanager
    async def stream(self, prompt: Prompt) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        call = self._stub.StreamGenerate(pb.StreamGenerateRequest(prompt=_prompt_to(prompt)))
        answer = _AnswerBuilder()
        try:
            yield self._events(call, answer)
            if answer.ended:
                # The status comes right after the last event; a call that is cancelled
                # before it would be counted as one that was given up.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_STATUS_WAIT_S):
                        await call.code()
        finally:
            call.cancel()

    def hides(self, prompt: Prompt, kinds: Set[str]) -> bool:
        return bool(kinds) and _prompt_to(prompt) != _prompt_to(replace(prompt, hidden=prompt.hidden | kinds))

    async def can_answer(self, name: str, timeout_s: float) -> bool:
        try:
            response = await self._stub.GetModel(pb.GetModelRequest(name=name), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            match from_rpc(error, part="inference"):
                case NotFound():
                    return False
                case DeadlineExceeded():
                    raise Unavailable("inference", "the inference service does not answer") from error
                case other:
                    raise other from error
        # An alias has what all of its targets can do.
        return model_pb2.CAPABILITY_EMBEDDING not in response.model.capabilities

    async def _events(
        self,
        call: grpc.aio.UnaryStreamCall[pb.StreamGenerateRequest, pb.StreamGenerateResponse],
        answer: "_AnswerBuilder",
    ) -> AsyncIterator[ModelEvent]:
        try:
            async for response in call:
                event = response.event
                kind = event.WhichOneof("event")
                wire = event.SerializeToString()
                answer.ended = kind in ("finished", "failed")
                if kind == "finished":
                    whole = answer.whole(event.finished, self._clock)
                    yield ModelEvent(ModelEventKind.FINISHED, wire, answer=whole, usage=whole.usage)
                    return
                if kind == "failed":
                    yield _failed(event.failed, wire)
                    return
                answer.add(event)
                usage = _so_far(event.usage) if kind == "usage" else None
                yield ModelEvent(ModelEventKind.NOTE if kind in _NOTES else ModelEventKind.DELTA, wire, usage=usage)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="inference") from error
        raise Unavailable("inference", "the inference service ended a stream without saying how it ended")


def _so_far(said: event_pb2.UsageUpdated) -> Usage:
    """Usage of a call that goes on: as long as its end does not confirm it, no more than an estimate."""
    return replace(usage_from(said.usage), source=usage_pb2.USAGE_SOURCE_ESTIMATED)


def _failed(failed: event_pb2.GenerationFailed, wire: bytes) -> ModelEvent:
    failure = Failure(
        failed.status.SerializeToString(deterministic=True),
        failed.retryable,
        from_status(failed.status, part="inference").reason,
    )
    usage = usage_from(failed.usage) if failed.HasField("usage") else None
    return ModelEvent(ModelEventKind.FAILED, wire, failure=failure, usage=usage)


class _AnswerBuilder:
    """Puts the parts of an answer together from its events."""

    def __init__(self) -> None:
        self._parts: dict[int, message_pb2.Part] = {}
        self._texts: dict[int, list[str]] = {}
        self._citations: list[message_pb2.Part] = []
        self._model = ""
        self._size = 0
        self.ended = False

    def add(self, event: event_pb2.GenerationEvent) -> None:
        """Raises ResourceExhausted as soon as the answer is longer than a message may be."""
        match event.WhichOneof("event"):
            case "text_delta":
                self._text(event.text_delta.part_index, event.text_delta.text, "text")
            case "refusal_delta":
                self._text(event.refusal_delta.part_index, event.refusal_delta.text, "refusal")
            case "reasoning_delta":
                self._reasoning(event.reasoning_delta)
            case "reasoning_signature":
                signature = event.reasoning_signature
                reasoning = self._part(signature.part_index).reasoning
                reasoning.signature = signature.signature
                reasoning.issuer = signature.issuer
            case "tool_call_completed":
                said = event.tool_call_completed
                self._grow(said.call.arguments_json)
                self._part(said.part_index).tool_call.CopyFrom(said.call)
            case "citation":
                self._citations.append(message_pb2.Part(citation=event.citation.citation))
            case "opaque":
                self._part(event.opaque.part_index).opaque.CopyFrom(event.opaque.part)
            case "started":
                self._model = f"{event.started.provider}/{event.started.model}"
            case "route_changed":
                self._model = event.route_changed.to

    def whole(self, finished: event_pb2.GenerationFinished, clock: Clock) -> Answer:
        """The answer, once the model said that it is whole."""
        parts: list[message_pb2.Part] = []
        places: dict[int, int] = {}
        for index in sorted(self._parts):
            places[index] = len(parts)
            parts += self._whole_part(index)
        for part in self._citations[: max(0, MOST_PARTS - len(parts))]:
            # It names its text by the number that it had in the stream.
            part.citation.part_index = places.get(part.citation.part_index, 0)
            parts.append(part)
        message = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, parts=parts)
        kept = completed(message, clock.now()) if parts else None
        if kept is not None and len(kept.wire) > MOST_BYTES:
            raise _too_large()
        return Answer(
            message=kept,
            finish_reason=finished.reason,
            usage=usage_from(finished.usage),
            unsupported=_UNSUPPORTED.get(finished.reason, ""),
            model=self._model,
        )

    def _whole_part(self, index: int) -> list[message_pb2.Part]:
        """The part with its text; as several parts when that is longer than one may have."""
        part = self._parts[index]
        if index not in self._texts:
            return [part]
        text = "".join(self._texts[index])
        match part.WhichOneof("kind"):
            case "refusal":
                return [message_pb2.Part(refusal=piece) for piece in pieces(text, _MOST_REFUSAL_BYTES)]
            case "reasoning":
                form = part.reasoning.WhichOneof("form") or "text"
                setattr(part.reasoning, form, text)
                return [part]
        return [message_pb2.Part(text=piece) for piece in pieces(text)]

    def _hear(self, index: int, text: str) -> None:
        self._grow(text)
        self._texts[index].append(text)

    def _grow(self, text: str) -> None:
        self._size += len(text.encode())
        if self._size > MOST_BYTES:
            raise _too_large()

    def _part(self, index: int) -> message_pb2.Part:
        if index not in self._parts and len(self._parts) >= MOST_PARTS:
            raise _too_large()
        return self._parts.setdefault(index, message_pb2.Part())

    def _text(self, index: int, text: str, kind: str) -> None:
        if index not in self._texts:
            self._parts[index] = message_pb2.Part(**{kind: ""})  # type: ignore[arg-type]
            self._texts[index] = []
        self._hear(index, text)

    def _reasoning(self, delta: event_pb2.ReasoningDelta) -> None:
        form = delta.WhichOneof("form")
        reasoning = self._part(delta.part_index).reasoning
        if form == "redacted":
            reasoning.redacted += delta.redacted
        elif form is not None:
            if delta.part_index not in self._texts:
                setattr(reasoning, form, "")
                self._texts[delta.part_index] = []
            self._hear(delta.part_index, getattr(delta, form))


def _too_large() -> ResourceExhausted:
    return ResourceExhausted(
        "MESSAGE_TOO_LARGE", "the model's answer is larger than a message may be", {"limit_bytes": str(MOST_BYTES)}
    )


def _hide(parts: Iterable[message_pb2.Part], kinds: Set[str]) -> None:
    """Say in the place of such parts that they are there, also of what a tool answered."""
    for part in parts:
        kind = part.WhichOneof("kind")
        if kind == "tool_result":
            _hide(part.tool_result.parts, kinds)
        elif kind in kinds:
            part.text = f"[of kind {kind}: this model cannot be shown it]"


def _prompt_to(prompt: Prompt) -> request_pb2.Prompt:
    message = request_pb2.Prompt(
        model=prompt.model,
        system=prompt.system,
        max_output_tokens=prompt.max_output_tokens,
        labels=dict(prompt.labels),
    )
    for item in prompt.messages:
        if item.wire:
            said = message.messages.add()
            said.ParseFromString(item.wire)
            if prompt.hidden and not item.asked:
                _hide(said.parts, prompt.hidden)
        else:
            message.messages.add(role=ROLE_NUMBERS[item.role], parts=[message_pb2.Part(text=item.text)])
    for tool in prompt.tools:
        message.tools.add(name=tool.name, description=tool.description, parameters_schema_json=tool.schema_json)
    if prompt.sampling:
        message.sampling.ParseFromString(prompt.sampling)
    if prompt.reasoning:
        message.reasoning.ParseFromString(prompt.reasoning)
    return message
