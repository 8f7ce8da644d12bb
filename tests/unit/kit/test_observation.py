"""Logs, metrics and probes as an operator's tools read them."""

import asyncio
import json
import logging as standard
import subprocess
import sys
from io import StringIO

import pytest
from pydantic import SecretStr

from janus_kit.errors import Unavailable
from janus_kit.mount import Part
from janus_kit.settings import TelemetrySettings
from janus_kit.telemetry import logging, tracing
from janus_kit.transport import ListenError

TELEMETRY = TelemetrySettings(metrics_listen="127.0.0.1:0")


def test_a_line_is_one_json_object_with_the_bound_ids(logs):
    log = logging.get_logger("test")
    with logging.bound(run_id="run_1", tenant="acme"):
        log.info("something", text="line one\nline two", key=SecretStr("hunter2"))
    log.info("outside")
    inside, outside = logs.all()
    assert inside["event"] == "something"
    assert (inside["run_id"], inside["tenant"], inside["level"]) == ("run_1", "acme", "info")
    assert inside["timestamp"].endswith("Z")
    assert inside["key"] == "**********"
    assert "run_id" not in outside


def test_values_of_an_outer_block_come_back(logs):
    log = logging.get_logger("test")
    with logging.bound(run_id="run_1", tenant="acme"):
        with logging.bound(run_id="run_2"):
            logging.bind(run_id="run_3")
            log.info("inner")
        log.info("outer")
    (inner,), (outer,) = logs.named("inner"), logs.named("outer")
    assert (inner["run_id"], inner["tenant"]) == ("run_3", "acme")
    assert (outer["run_id"], outer["tenant"]) == ("run_1", "acme")


def test_a_logger_that_was_used_follows_what_is_configured_later():
    first, second = StringIO(), StringIO()
    log = logging.get_logger("test")
    logging.configure(level="info", stream=first)
    log.info("one")
    logging.configure(level="debug", stream=second)
    log.debug("two")
    logging.configure(level="warning", stream=second)
    log.info("three")
    assert [json.loads(stream.getvalue())["event"] for stream in (first, second)] == ["one", "two"]


async def test_ids_reach_tasks_and_do_not_leak_between_them(logs):
    log = logging.get_logger("test")

    async def work(name):
        logging.bind(run_id=name)
        await asyncio.sleep(0)
        await asyncio.create_task(inner(name))

    async def inner(name):
        log.info("inner", name=name)

    await asyncio.gather(work("a"), work("b"))
    assert [(line["run_id"], line["name"]) for line in logs.named("inner")] == [("a", "a"), ("b", "b")]


def test_lines_of_libraries_take_the_same_form(logs):
    with logging.bound(tenant="acme"):
        standard.getLogger("some.library").warning("it said %s", "so")
    (line,) = logs.all()
    assert (line["event"], line["logger"], line["tenant"]) == ("it said so", "some.library", "acme")


def test_an_exception_is_structured_in_json(logs):
    try:
        raise ValueError("broken")
    except ValueError as error:
        logging.get_logger("test").error("failed", exc_info=error)
    assert logs.all()[0]["exception"][0]["exc_type"] == "ValueError"


def test_lines_below_the_level_are_not_written():
    stream = StringIO()
    logging.configure(level="warning", stream=stream)
    logging.get_logger("test").info("quiet")
    assert stream.getvalue() == ""


def test_the_console_form_is_for_people():
    stream = StringIO()
    logging.configure(level="info", form="console", stream=stream)
    logging.get_logger("test").info("hello", name="world")
    logging.configure(level="warning")
    assert "hello" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


async def get(address, path, method="GET", raw=None):
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    writer.write(raw or f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


async def test_metrics_are_served_over_http(serving, eventually):
    async with serving(telemetry=TELEMETRY) as probe:
        await probe.call("Unary")
        status, body = await get(probe.host.metrics_address, "/metrics")
        assert status == 200
        assert 'rpc_server_call_duration_seconds_count{rpc_method="janus.probe.v1.ProbeService/Unary"' in body
        assert "janus_build_info{revision=" in body
        assert "development" not in body

        async def lag():
            return (await get(probe.host.metrics_address, "/metrics"))[1]

        async with asyncio.timeout(5):
            while 'janus_event_loop_lag_seconds_count{service="probe"}' not in await lag():
                pass


async def test_probes_of_an_orchestrator_are_answered(serving):
    async def away():
        raise Unavailable("postgres")

    async with serving(telemetry=TELEMETRY) as probe:
        assert await get(probe.host.metrics_address, "/livez") == (200, "ok\n")
        assert await get(probe.host.metrics_address, "/readyz") == (200, "serving\n")
    async with serving(telemetry=TELEMETRY, mount={"parts": (Part("postgres", True, away),)}) as probe:
        assert await get(probe.host.metrics_address, "/livez") == (200, "ok\n")
        assert await get(probe.host.metrics_address, "/readyz") == (503, "not_serving\n")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"nonsense\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"GET /" + b"x" * 100_000, 0),
    ],
    ids=["post", "absent", "nonsense", "bytes", "long"],
)
async def test_odd_requests_to_the_metrics_listener_do_no_harm(serving, raw, status):
    async with serving(telemetry=TELEMETRY) as probe:
        try:
            assert (await get(probe.host.metrics_address, "", raw=raw))[0] == status
        except ConnectionError:
            assert status == 0
        assert (await get(probe.host.metrics_address, "/livez"))[0] == 200


async def test_an_idle_connection_does_not_keep_the_process(serving):
    async with serving(telemetry=TELEMETRY) as probe:
        _, writer = await asyncio.open_connection(*probe.host.metrics_address.rsplit(":", 1))
    writer.close()


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:70000", "127.0.0.1:x"])
async def test_a_metrics_address_that_is_none_is_refused(serving, listen):
    with pytest.raises(ListenError):
        async with serving(telemetry=TelemetrySettings(metrics_listen=listen)):
            pass


def test_nothing_heavy_is_imported_until_it_is_configured():
    script = (
        "import sys, janus_kit.server, janus_kit.channel, janus_kit.postgres\n"
        "heavy = ('opentelemetry', 'openai', 'anthropic', 'fastapi', 'numpy', 'chromadb')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tracing_without_a_collector_stays_off():
    tracing.configure(endpoint=None, service="test", version="0")
    assert not tracing.enabled()
    with tracing.span("work") as span:
        assert span is None


def test_tracing_without_its_exporter_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(RuntimeError, match=r"janus-mesh\[telemetry\]"):
        tracing.configure(endpoint="http://localhost:4317", service="test", version="0")
    assert not tracing.enabled()
