"""Schedules: decode, check, encode."""

from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2

from janus_api.content.v1 import message_pb2
from janus_api.orchestration.v1 import schedule_pb2 as pb
from janus_kit.validate import Violations
from janus_orchestration.model import Message, Role
from janus_orchestration.timetable import ZONES, CatchUp, Schedule, ScheduleSpec, is_cron
from janus_orchestration.wire.content import check_message, completed, duration, timestamp

_CATCH_UP = {
    pb.CATCH_UP_SKIP: CatchUp.SKIP,
    pb.CATCH_UP_ONCE: CatchUp.ONCE,
    pb.CATCH_UP_ALL: CatchUp.ALL,
}
_MOST_MESSAGE_BYTES = 64 * 1024
_LEAST_WINDOW = timedelta(minutes=1)
_MOST_WINDOW = timedelta(days=30)


def schedule_from(schedule: pb.Schedule, is_set: bool) -> ScheduleSpec:
    """A checked schedule. Raises InvalidArgument; whether its agent is there is for others to say."""
    check = Violations()
    if not check.present("schedule", is_set):
        check.done()
    check.id("schedule.name", schedule.name)
    check.id("schedule.agent", schedule.agent)
    check.id("schedule.thread_id", schedule.thread_id, optional=True)
    check.id("schedule.subject", schedule.subject, optional=True)
    if check.length("schedule.cron", schedule.cron, at_least=1, at_most=128):
        check.require(
            is_cron(schedule.cron), "schedule.cron", "must be a five-field cron expression that some date meets"
        )
    check.require(
        not schedule.time_zone or schedule.time_zone in ZONES,
        "schedule.time_zone",
        "must be the IANA name of a time zone, such as Europe/Berlin",
    )
    if check.present("schedule.message", schedule.HasField("message")):
        check_message(check, "schedule.message", schedule.message, (Role.USER,))
        check.require(schedule.message.ByteSize() <= _MOST_MESSAGE_BYTES, "schedule.message", "must be at most 64 KiB")
        check.require(not schedule.message.id, "schedule.message.id", "must be empty, since every run's gets its own")
    check.require(schedule.catch_up in pb.CatchUp.values(), "schedule.catch_up", "must be a value of the enum")
    window = _window_from(check, schedule.catch_up_window) if schedule.HasField("catch_up_window") else None
    check.done()
    return ScheduleSpec(
        name=schedule.name,
        cron=schedule.cron,
        time_zone=schedule.time_zone,
        agent=schedule.agent,
        thread_id=schedule.thread_id,
        message=schedule.message.SerializeToString(deterministic=True),
        catch_up=_CATCH_UP.get(schedule.catch_up),
        catch_up_window=window,
        paused=schedule.paused,
        subject=schedule.subject,
    )


def _window_from(check: Violations, sent: Duration) -> timedelta:
    try:
        window = sent.ToTimedelta()
    except (ValueError, OverflowError):
        window = timedelta()
    check.require(_LEAST_WINDOW <= window <= _MOST_WINDOW, "schedule.catch_up_window", "must be 1 minute to 30 days")
    return window


def schedule_to(schedule: Schedule) -> pb.Schedule:
    spec = schedule.spec
    message = pb.Schedule(
        name=spec.name,
        cron=spec.cron,
        time_zone=spec.time_zone,
        agent=spec.agent,
        thread_id=spec.thread_id,
        message=message_pb2.Message.FromString(spec.message),
        catch_up=next(
            (number for number, value in _CATCH_UP.items() if value is spec.catch_up), pb.CATCH_UP_UNSPECIFIED
        ),
        paused=spec.paused,
        version=schedule.version,
        subject=spec.subject,
        last_run_id=schedule.last_run_id,
    )
    if spec.catch_up_window is not None:
        message.catch_up_window.CopyFrom(duration(spec.catch_up_window))
    if schedule.next_run_at is not None:
        message.next_run_at.CopyFrom(timestamp(schedule.next_run_at))
    if schedule.last_run_at is not None:
        message.last_run_at.CopyFrom(timestamp(schedule.last_run_at))
    if schedule.last_error:
        message.last_error.CopyFrom(status_pb2.Status.FromString(schedule.last_error))
    return message


class ProtobufMessages:
    """Implements ports.MessageCodec."""

    def fresh(self, wire: bytes, at: datetime) -> Message:
        return completed(message_pb2.Message.FromString(wire), at)
