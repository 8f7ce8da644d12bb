"""The use case: one prompt, answered as numbered events or as a whole answer.

What holds for every provider is decided here: the order and number of events,
exactly one terminal event, what a failure looks like, and that whatever was
used is on record before the end is said. Until the first semantic event nothing
is delivered, so a failure before it is raised; after it the stream ends in
Failed. A resumable generation is different in that it says Started as soon as
somebody is asked, and that it belongs to nobody's call.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace

from janus_inference.asking import Desk, Watch
from janus_inference.caching import AnswerCache
from janus_inference.events import Answer, Numbered
from janus_inference.fold import Fold
from janus_inference.model import Caller, Prompt
from janus_inference.ports import EventCodec, Request
from janus_inference.requests import Begun, Requests, Running, Stored
from janus_inference.resuming import Resumables
from janus_inference.routing import Routes
from janus_inference.run import Claim, Run
from janus_inference.validation import validate
from janus_kit.errors import Aborted, NotFound
from janus_kit.ids import new_id

_COME_BACK_S = 1.0


@dataclass(frozen=True)
class Generation:
    """Answers prompts. ``linger_s`` is for resumable prompts that say nothing."""

    desk: Desk
    routes: Routes
    requests: Requests
    cache: AnswerCache
    resumables: Resumables
    codec: EventCodec
    linger_s: float

    async def answer(
        self, prompt: Prompt, caller: Caller, *, remaining: float | None = None, digest: bytes = b""
    ) -> Answer:
        """The whole answer: the same events, added up. Raises JanusError.

        ``remaining`` seconds are left to the call. ``digest`` stands for the
        request's body where the prompt has a request_id.
        """
        fold = Fold()
        whole = replace(prompt, resumable=False) if prompt.resumable else prompt
        async with aclosing(self._events(whole, caller, remaining, "Generate", digest)) as events:
            async for numbered in events:
                fold.add(numbered.event)
        return fold.answer()

    def run(
        self,
        prompt: Prompt,
        caller: Caller,
        *,
        remaining: float | None = None,
        digest: bytes = b"",
        keep: AbstractContextManager[object] | None = None,
    ) -> AsyncGenerator[Numbered, None]:
        """The answer as events. Raises JanusError before the first one, never after.

        Close the generator to stop: that closes the provider's connection
        before it returns, unless the prompt is resumable; then the generation
        goes on, within ``keep``.
        """
        return self._events(prompt, caller, remaining, "StreamGenerate", digest, keep)

    def resume(self, generation_id: str, caller: Caller, after: int) -> AsyncGenerator[Numbered, None]:
        """The events of a resumable generation after that sequence, then live ones. Raises NotFound, OutOfRange."""
        return self.resumables.follow(caller, generation_id, after)

    async def _events(
        self,
        prompt: Prompt,
        caller: Caller,
        remaining: float | None,
        method: str,
        digest: bytes,
        keep: AbstractContextManager[object] | None = None,
    ) -> AsyncGenerator[Numbered, None]:
        watch = Watch()
        validate(prompt)
        route = self.routes.route(prompt.model, prompt.routing)
        generation_id = new_id("gen")
        request = Request(caller, method, prompt.request_id, digest) if prompt.request_id else None
        if request is not None:
            found = await self.requests.begin(request, generation_id)
            if not isinstance(found, Begun):
                async with aclosing(self._again(found, prompt, caller)) as events:
                    async for numbered in events:
                        yield numbered
                return
        claim = Claim(self.requests, request, generation_id)
        try:
            cached = await self.cache.get(caller, prompt, route.means) if prompt.cache.read else None
            run = Run(self, prompt, caller, route, claim, remaining, watch, streaming=method != "Generate")
            events = run.from_cache(cached) if cached is not None else run.events()
            if prompt.resumable:
                # What is refused before anybody is asked is the caller's own error, and not an event.
                first = await anext(events)
                linger = self.linger_s if prompt.linger is None else prompt.linger
                continued = _continued(first, events, claim, keep)
                pledge = run.pledge() if cached is None else None
                events = self.resumables.start(caller, generation_id, continued, linger, pledge=pledge, spent=run.spent)
            async with aclosing(events):
                async for numbered in events:
                    if prompt.resumable:
                        # The generation, and with it the claim, goes on without this call.
                        claim = Claim(self.requests, None, generation_id)
                    yield numbered
        finally:
            claim.give_up()

    async def _again(self, found: Stored | Running, prompt: Prompt, caller: Caller) -> AsyncGenerator[Numbered, None]:
        """What a request gets that was sent before."""
        if isinstance(found, Stored):
            for numbered in found.events:
                yield numbered
            return
        if not prompt.resumable:
            raise _in_progress(found.generation_id)
        try:
            async with aclosing(self.resume(found.generation_id, caller, 0)) as events:
                async for numbered in events:
                    yield numbered
        except NotFound:
            # Its owner has yet to begin, or has just given it up.
            raise _in_progress(found.generation_id) from None


def _in_progress(generation_id: str) -> Aborted:
    text = "a call with this request_id is still being worked on"
    return Aborted("REQUEST_IN_PROGRESS", text, {"generation_id": generation_id}, _COME_BACK_S)


async def _continued(
    first: Numbered,
    events: AsyncGenerator[Numbered, None],
    claim: Claim,
    keep: AbstractContextManager[object] | None,
) -> AsyncGenerator[Numbered, None]:
    """A stream whose first event was taken already."""
    with keep or nullcontext():
        try:
            async with aclosing(events):
                yield first
                async for numbered in events:
                    yield numbered
        finally:
            claim.give_up()
