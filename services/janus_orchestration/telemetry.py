"""Metrics and spans of runs. Labels are bounded: never a run, a user or a model's words."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from janus_kit.telemetry import names, tracing
from janus_orchestration.ports import ToolTask

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# The one way of working that there is today, whoever asked; sub-agents will add theirs.
WORKFLOW = "turn"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

runs_started = Counter("janus_runs_started_total", "Runs accepted.", ["workflow"]).labels(WORKFLOW)
runs_finished = Counter("janus_runs_finished_total", "Runs ended, by how.", ["workflow", "outcome"])
runs_in_flight = Gauge("janus_runs_in_flight", "Runs that this process works on.", ["workflow"]).labels(WORKFLOW)
runs_stuck = Gauge("janus_runs_stuck", "Runs of this process that have had no event for 5 minutes.", ["workflow"])
step_duration = Histogram(
    "janus_run_step_duration_seconds", "Time from a step's start to its end.", ["kind"], buckets=_SECONDS
)
run_recovered = Counter("janus_run_recovered_total", "Runs taken over from an owner that died.", ["cause"])
run_answers = Counter(
    "janus_run_answers_total", "What runs waited for: how often it came, or did not.", ["kind", "outcome"]
)
event_delivery = Histogram(
    "janus_run_event_delivery_seconds",
    "From an event's being persisted to its being sent, where the run is worked on.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
run_resumes = Counter("janus_run_resumes_total", "Watches that began after a cursor.", ["outcome"])
store_debts_paid = Counter(
    "janus_run_memory_stores_total", "Writes of turns to memory, by when they succeeded.", ["when"]
)
store_debts_dead = Counter(
    "janus_run_memory_stores_refused_total", "Writes of turns that memory refused for good.", ["code"]
)
extractions_refused = Counter(
    "janus_run_memory_extractions_refused_total", "Turns that memory has and was not to make facts of.", ["code"]
)
schedule_runs = Counter("janus_schedule_runs_total", "Due times of schedules, by what became of them.", ["outcome"])
schedule_lateness = Histogram(
    "janus_schedule_lateness_seconds",
    "From the time that a run was due to its start.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3_600, 86_400),
)
webhook_deliveries = Counter(
    "janus_webhook_deliveries_total", "Tries to tell a webhook's receiver, by how they ended.", ["outcome"]
)
webhook_attempt = Histogram(
    "janus_webhook_attempt_seconds", "Time of one try to tell a webhook's receiver.", buckets=_SECONDS
)

mcp_connected = Gauge("janus_mcp_servers_connected", "Whether this process is connected to an MCP server.", ["server"])
mcp_connections = Counter("janus_mcp_connections_total", "Connections made to an MCP server.", ["server"])
mcp_calls = Counter(
    "janus_mcp_calls_total", "Calls of an MCP server's tools, by how they ended.", ["server", "outcome"]
)
mcp_call_duration = Histogram(
    "janus_mcp_call_seconds", "Time of a call, with its waits and further tries.", ["server"], buckets=_SECONDS
)

_tool_workers = Gauge("janus_tool_workers_connected", "Workers connected to this process, by tool.", ["tool"])
_tool_queue = Histogram(
    "janus_tool_call_queue_seconds", "From a call's being put up to a worker's having it.", ["tool"], buckets=_SECONDS
)
_execute_tool = Histogram(
    names.GEN_AI_EXECUTE_TOOL_DURATION,
    "Time of a tool call, from its being begun to what became of it.",
    ["gen_ai_tool_name", "error_type"],
    buckets=names.GEN_AI_BUCKETS,
)
# Tools are named by tenants; a metric has room for so many names.
_MOST_TOOL_NAMES = 200
_tool_names: set[str] = set()


def workers_connected(tools: Iterable[str], more: int) -> None:
    """A worker of these tools has come (1) or gone (-1)."""
    for tool in tools:
        _tool_workers.labels(_tool_label(tool)).inc(more)


def tool_queue(tool: str, seconds: float) -> None:
    """A call has waited so long for a worker."""
    _tool_queue.labels(_tool_label(tool)).observe(max(0.0, seconds))


def _tool_label(name: str) -> str:
    if len(_tool_names) < _MOST_TOOL_NAMES:
        _tool_names.add(name)
    return name if name in _tool_names else "other"


class ToolExecution:
    """A tool call as it is measured."""

    def __init__(self, span: "Span | None") -> None:
        self._span = span
        self.error_type = ""

    def failed(self) -> None:
        """The tool says that it failed."""
        self.error_type = "tool_error"
        if self._span is not None:
            self._span.set_attribute(names.ERROR_TYPE, self.error_type)
            tracing.mark_failed(self._span)


@contextmanager
def tool_executed(task: ToolTask) -> Iterator[ToolExecution]:
    """Time a tool call and put a span around it, as the GenAI conventions say, without what is said in it."""
    began, name = time.perf_counter(), task.call.name
    attributes: dict[str, str | int] = {
        names.GEN_AI_OPERATION_NAME: "execute_tool",
        names.GEN_AI_TOOL_NAME: name,
        names.GEN_AI_TOOL_CALL_ID: task.call.call_id,
        names.GEN_AI_CONVERSATION_ID: task.thread.id,
        names.RUN_ID: task.run_id,
        names.ATTEMPT_NUMBER: task.attempt,
    }
    execution = ToolExecution(None)
    try:
        with tracing.span(f"execute_tool {name}", attributes) as span:
            execution = ToolExecution(span)
            yield execution
    except Exception as error:
        execution.error_type = type(error).__name__
        raise
    finally:
        seconds = time.perf_counter() - began
        _execute_tool.labels(_tool_label(name), execution.error_type).observe(seconds)
