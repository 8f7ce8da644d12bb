"""Health from the real parts: who is away, and what that leaves of each service."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from janus_kit.errors import JanusError
from janus_kit.mount import Mount, Part
from janus_kit.telemetry import metrics
from janus_kit.telemetry.logging import get_logger
from janus_kit.waiting import within

_log = get_logger(__name__)

CHECK_TIMEOUT_S = 2.0
# A question about health is answered from a check no older than this.
FRESH_S = 1.0
# While something is away its return is looked for this often.
AWAY_INTERVAL_S = 0.5


class State(Enum):
    """What a service can do."""

    SERVING = "serving"
    DEGRADED = "degraded"
    NOT_SERVING = "not_serving"


@dataclass(frozen=True)
class PartReport:
    """The last check of a part. ``seconds`` is how long it took."""

    part: Part
    available: bool
    detail: str
    seconds: float


@dataclass
class _Watched:
    """A part with its last report, and the check that is under way."""

    part: Part
    service: str
    report: PartReport | None = None
    checked_at: float = float("-inf")
    running: asyncio.Task[None] | None = field(default=None, repr=False)
    gone: bool = False


class HealthMonitor:
    """Checks the parts of all mounts, now and then and when asked."""

    def __init__(self, mounts: Sequence[Mount], *, interval_s: float = 2.0) -> None:
        self._interval_s = interval_s
        self._mounts = {mount.name: mount for mount in mounts}
        self._parts = {mount.name: [_Watched(part, mount.name) for part in mount.parts] for mount in mounts}
        self._mount_of = {service: mount.name for mount in mounts for service in mount.services}
        self._states = {mount.name: State.NOT_SERVING for mount in mounts}
        self._listeners: set[Callable[[], None]] = set()
        self.is_draining = False

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of all services of all mounts."""
        return tuple(self._mount_of)

    def knows(self, service: str) -> bool:
        """Whether there is such a service; the empty name is the whole process."""
        return service == "" or service in self._mount_of

    def state(self, service: str = "") -> State:
        """The state after the last checks; of the whole process, the worst of all."""
        if self.is_draining:
            return State.NOT_SERVING
        if service:
            return self._states[self._mount_of[service]]
        states = set(self._states.values())
        for worst in (State.NOT_SERVING, State.DEGRADED):
            if worst in states:
                return worst
        return State.SERVING

    def reports(self, service: str) -> list[PartReport]:
        """The last report of each part of a service."""
        parts = self._parts[self._mount_of[service]]
        return [watched.report for watched in parts if watched.report is not None]

    async def refresh(self, service: str = "", *, max_age_s: float | None = None, required: bool = False) -> None:
        """Check again what was last checked longer ago than ``max_age_s``, by default a second.

        With ``required`` only the parts without which nothing is served.
        """
        oldest = FRESH_S if max_age_s is None else max_age_s
        names = [self._mount_of[service]] if service else list(self._parts)
        for name in names:
            self._renew(name)
        now = time.monotonic()
        stale = [
            watched
            for name in names
            for watched in self._parts[name]
            if now - watched.checked_at > oldest and (watched.part.required or not required)
        ]
        await asyncio.gather(*(self._check(watched) for watched in stale))
        for name in names:
            self._settle(name)

    async def run(self) -> None:
        """Check for ever; more often while something is away."""
        while True:
            await self.refresh(max_age_s=0)
            all_well = all(state is State.SERVING for state in self._states.values())
            await asyncio.sleep(self._interval_s if all_well else AWAY_INTERVAL_S)

    def drain(self) -> None:
        """From now on nothing serves, whatever the parts say."""
        self.is_draining = True
        self._tell()

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call the listener after every change of any state. Returns how to stop that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _renew(self, name: str) -> None:
        """Take over which parts a mount has by now; one that it had before keeps its report."""
        known = {watched.part.name: watched for watched in self._parts[name]}
        self._parts[name] = []
        for part in self._mounts[name].parts:
            watched = known.pop(part.name, None) or _Watched(part, name)
            watched.part = part
            self._parts[name].append(watched)
        for watched in known.values():
            watched.gone = True
            if watched.report is not None:
                metrics.part_available.remove(name, watched.part.name)

    async def _check(self, watched: _Watched) -> None:
        """One check at a time a part; whoever asks meanwhile waits for the same one."""
        if watched.running is None or watched.running.done():
            watched.running = asyncio.create_task(
                self._probe(watched), name=f"check-{watched.service}-{watched.part.name}"
            )
        # A questioner that goes away does not take the check with it.
        await asyncio.shield(watched.running)

    async def _probe(self, watched: _Watched) -> None:
        part = watched.part
        began = time.monotonic()
        problem = ""
        try:
            async with within(CHECK_TIMEOUT_S):
                await part.check()
        except JanusError as error:
            problem = error.message
        except TimeoutError:
            problem = f"{part.name} did not answer in {CHECK_TIMEOUT_S:g} s"
        except Exception as error:  # noqa: BLE001 - any failure of a check means "away"
            _log.debug("part_check_failed", part=part.name, exc_info=error)
            problem = f"{part.name} does not answer"
        watched.checked_at = time.monotonic()
        report = PartReport(
            part=part,
            available=not problem,
            detail="; ".join(text for text in (problem, problem and part.when_away) if text),
            seconds=watched.checked_at - began,
        )
        previous, watched.report = watched.report, report
        if watched.gone:
            return
        metrics.part_available.labels(watched.service, part.name).set(report.available)
        if not report.available and (previous is None or previous.available):
            _log.warning(
                "part_away",
                service=watched.service,
                part=part.name,
                required=part.required,
                detail=report.detail,
            )
        elif report.available and previous is not None and not previous.available:
            _log.info("part_back", service=watched.service, part=part.name)

    def _settle(self, name: str) -> None:
        """Work out a mount's state from its reports, and tell whoever wants to know."""
        # A part that came with new settings may not have been checked yet.
        reports = [(watched.part.required, watched.report) for watched in self._parts[name]]
        if any(required and (report is None or not report.available) for required, report in reports):
            state = State.NOT_SERVING
        elif any(report is not None and not report.available for _, report in reports):
            state = State.DEGRADED
        else:
            state = State.SERVING
        previous, self._states[name] = self._states[name], state
        if state is not previous:
            log = _log.info if state is State.SERVING else _log.warning
            log("service_state", service=name, state=state.value, before=previous.value)
            self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()
