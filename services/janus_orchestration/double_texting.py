"""What a second message does to the runs of its thread that are before it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from janus_kit.errors import ResourceExhausted
from janus_orchestration.model import DoubleTexting, Message, Run, Thread
from janus_orchestration.ports import Records

_REASONS = {
    DoubleTexting.INTERRUPT: "interrupted by a later message",
    DoubleTexting.ROLLBACK: "rolled back by a later message",
}
# What one run may be asked, as if it had come in one request.
_MOST_MESSAGES = 64
_MOST_BYTES = 4 * 1024 * 1024

Stop = Callable[[Records, Run, str, bool], Awaitable[Run]]
"""Ask a run to stop, with a reason, and whether its messages go with it."""


@dataclass(frozen=True)
class Way:
    """What is left before a new run: its thread, what it is asked now, and the run that is stopping."""

    thread: Thread
    messages: tuple[Message, ...]
    stopping: str = ""
    reason: str = ""


async def make_way(
    records: Records, thread: Thread, policy: DoubleTexting | None, messages: Sequence[Message], stop: Stop
) -> Way:
    """Stop what is before a new run, as far as the policy says so. ``thread`` must be locked.

    Runs that wait have said nothing yet: they end at once. After an interrupt
    the new run is asked what they were asked as well, so that no message is
    lost because the next one came soon. Raises ResourceExhausted when that is
    more than one run may be asked.
    """
    asked = tuple(messages)
    if not thread.active_run or policy not in _REASONS:
        return Way(thread, asked)
    reason = _REASONS[policy]
    queued = await records.lock_queued(thread.id)
    waiting = [message for run in queued for message in await records.take_waiting_messages(run.id)]
    if policy is DoubleTexting.INTERRUPT:
        asked = _together(thread, waiting, asked)
    # The one whose turn it is comes last: it would pass the turn on to another of them.
    for run in reversed(queued):
        await stop(records, run, reason, False)
    stopping = ""
    if thread.active_run not in {run.id for run in queued}:
        active = await records.lock_run(thread.active_run)
        if active is not None:
            await stop(records, active, reason, policy is DoubleTexting.ROLLBACK)
            stopping = active.id
    after = await records.lock_thread(thread.id)
    return Way(after or thread, asked, stopping, reason)


def _together(thread: Thread, waiting: Sequence[Message], asked: tuple[Message, ...]) -> tuple[Message, ...]:
    together = (*waiting, *asked)
    if waiting and (len(together) > _MOST_MESSAGES or sum(len(each.wire) for each in together) > _MOST_BYTES):
        raise ResourceExhausted(
            "OVERLOADED",
            "what waiting runs of the thread were asked does not fit into one run together with this",
            retry_after=1.0,
            quota=(f"thread/{thread.id}", f"{_MOST_MESSAGES} messages, {_MOST_BYTES} bytes"),
        )
    return together
