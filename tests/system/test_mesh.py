"""The whole mesh over gRPC: a turn that remembers, bad input, kill -9, orderly stop."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import asyncpg
import grpc
import psutil
import pytest
from tests.system.driver import Server, eventually, fields, reason, server, user

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import inference_service_pb2 as inference
from janus_api.inference.v1 import request_pb2
from janus_api.memory.v1 import memory_service_pb2 as memory
from janus_api.memory.v1 import recall_pb2, record_pb2
from janus_api.memory.v1 import scope_pb2 as memory_scope
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as orchestration
from janus_app.client import Mesh, connect
from janus_app.embedded import read_state

TERMINAL = {"run_completed", "run_failed", "run_cancelled", "run_expired"}


def new_thread(mesh: Mesh, subject: str) -> str:
    request = orchestration.CreateThreadRequest(thread=thread_pb2.Thread(subject=subject))
    return mesh.orchestration.CreateThread(request).thread.id


def converse(mesh: Mesh, thread: str, said: content.Message) -> list[event_pb2.RunEvent]:
    request = orchestration.ConverseRequest(input=orchestration.RunInput(thread_id=thread, messages=[said]))
    return [reply.event for reply in mesh.orchestration.Converse(request, timeout=60)]


def text(events: list[event_pb2.RunEvent]) -> str:
    return "".join(event.model.event.text_delta.text for event in events)


def assert_whole(events: list[event_pb2.RunEvent]) -> None:
    """Sequences without a gap, and exactly one terminal event, which is the last."""
    assert [event.cursor.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = [event.WhichOneof("event") for event in events]
    assert [kind for kind in kinds if kind in TERMINAL] == [kinds[-1]]


def test_a_new_thread_remembers_what_another_was_told(mesh: Mesh) -> None:
    subject = f"person-{uuid.uuid4().hex[:8]}"
    told = converse(mesh, new_thread(mesh, subject), user("My cat is called Ada and she is afraid of thunder.", "Kim"))
    assert_whole(told)

    asked = converse(mesh, new_thread(mesh, subject), user("What is my cat afraid of?"))

    assert_whole(asked)
    recalled = next(event.memory_recalled for event in asked if event.WhichOneof("event") == "memory_recalled")
    assert "afraid of thunder" in recalled.hits[0].turn.message.parts[0].text
    assert recalled.hits[0].turn.message.name == "Kim"
    assert "afraid of thunder" in text(asked)


def test_a_model_remembers_and_finds_by_tools(mesh: Mesh) -> None:
    granted = [agent_pb2.AgentTool(name=name) for name in ("time.now", "memory.search", "memory.remember")]
    agent = agent_pb2.Agent(name="with-tools", tools=granted)
    mesh.orchestration.PutAgent(orchestration.PutAgentRequest(agent=agent))
    thread = thread_pb2.Thread(agent="with-tools", subject="tools")
    thread_id = mesh.orchestration.CreateThread(orchestration.CreateThreadRequest(thread=thread)).thread.id

    orders = '/call memory.remember {"text": "The spare key is under the blue stone."}\n/call time.now {}'
    told = converse(mesh, thread_id, user(orders))

    assert_whole(told)
    assert "The tool memory.remember answered" in text(told)
    assert "The tool time.now answered" in text(told)
    asked = eventually(
        lambda: [
            event.tool_call_completed.result.parts[0].text
            for event in converse(mesh, thread_id, user('/call memory.search {"query": "spare key"}'))
            if event.HasField("tool_call_completed") and "blue stone" in event.tool_call_completed.result.parts[0].text
        ]
    )
    assert not json.loads(asked[0])["memories"][0].get("speaker")


def test_the_openai_client_talks_to_the_edge(served: Server) -> None:
    import openai

    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="unused", max_retries=0) as client:
        models = [model.id for model in client.models.list()]
        whole = client.chat.completions.create(
            model="scripted/rehearsal", messages=[{"role": "user", "content": "Say something."}]
        )
        stream = client.chat.completions.create(
            model="scripted/rehearsal", messages=[{"role": "user", "content": "Say something."}], stream=True
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert "scripted/rehearsal" in models
    assert whole.choices[0].message.content
    assert streamed == whole.choices[0].message.content


def test_a_run_survives_kill_9_of_everything_in_mid_stream() -> None:
    with server() as served:
        with connect(served.data) as mesh:
            thread = new_thread(mesh, "survivor")
            replies = mesh.orchestration.Converse(
                orchestration.ConverseRequest(
                    input=orchestration.RunInput(thread_id=thread, messages=[user("/pace 40 Tell me about the sea.")])
                )
            )
            seen: list[event_pb2.RunEvent] = []
            for reply in replies:
                seen.append(reply.event)
                if reply.event.model.event.text_delta.text:
                    break
            served.kill()
            with pytest.raises(grpc.RpcError):
                seen.extend(reply.event for reply in replies)

        served.start()
        with connect(served.data) as mesh:
            request = orchestration.WatchRunRequest(run_id=seen[-1].run_id, after=seen[-1].cursor)
            rest = [reply.event for reply in mesh.orchestration.WatchRun(request, timeout=60)]
            run = mesh.orchestration.GetRun(orchestration.GetRunRequest(run_id=seen[-1].run_id)).run
            again = mesh.orchestration.WatchRun(orchestration.WatchRunRequest(run_id=run.id), timeout=60)
            whole = [reply.event for reply in again]

    assert_whole(seen + rest)
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    assert sum(event.WhichOneof("event") in TERMINAL for event in whole) == 1
    assert run.output[-1].parts[0].text


def test_a_stop_leaves_no_process_and_a_second_mesh_on_the_folder_is_refused() -> None:
    with server() as served:
        assert served.process is not None
        children = psutil.Process(served.process.pid).children(recursive=True)
        assert {"postgres", "valkey-server"} <= {child.name() for child in children}
        second = subprocess.run(
            [
                sys.executable,
                "-m",
                "janus_app",
                "serve",
                "--data",
                str(served.data),
                "--listen",
                "127.0.0.1:0",
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 1
        assert "in use" in second.stderr
        assert str(served.process.pid) in second.stderr
        assert "Traceback" not in second.stderr

        assert served.stop() == 0

        psutil.wait_procs(children, timeout=5)
        assert [child for child in children if child.is_running()] == []


GARBAGE = {
    "truncated": b"\x0a\xff\x01x",
    "nested too deep": b"\x0a\x7f" * 300,
}
# Every shape goes through the same guard; the ones that this version serves are tried here.
METHODS = {
    "/janus.inference.v1.InferenceService/Generate": "unary_unary",
    "/janus.inference.v1.InferenceService/StreamGenerate": "unary_stream",
    "/janus.memory.v1.MemoryService/Recall": "unary_unary",
    "/janus.orchestration.v1.OrchestrationService/PutAgent": "unary_unary",
    "/janus.orchestration.v1.OrchestrationService/Converse": "unary_stream",
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("garbage", ["truncated", "nested too deep"])
def test_garbage_is_refused_by_name(mesh: Mesh, method: str, garbage: str) -> None:
    shape = METHODS[method]
    call = getattr(mesh.channel, shape)(method, request_serializer=None, response_deserializer=None)
    body = GARBAGE[garbage]

    def answer() -> None:
        reply = call(body, timeout=10)
        if shape.endswith("stream"):
            list(reply)

    with pytest.raises(grpc.RpcError) as raised:
        answer()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(raised.value) == "REQUEST_UNDECODABLE"


def prompt(**changes: object) -> request_pb2.Prompt:
    return request_pb2.Prompt(**{"model": "scripted/rehearsal", "messages": [user("Hi")], **changes})  # type: ignore[arg-type]


def scope(**changes: str) -> memory_scope.Scope:
    return memory_scope.Scope(**{"thread": "bad-input", **changes})


BAD: dict[str, tuple[Callable[[Mesh], object], str]] = {
    "unknown model": (
        lambda mesh: mesh.inference.Generate(inference.GenerateRequest(prompt=prompt(model="nobody/nothing"))),
        "prompt.model",
    ),
    "empty prompt": (
        lambda mesh: mesh.inference.Generate(inference.GenerateRequest(prompt=prompt(messages=[]))),
        "prompt.messages",
    ),
    "unknown model, streamed": (
        lambda mesh: list(
            mesh.inference.StreamGenerate(inference.StreamGenerateRequest(prompt=prompt(model="nobody/nothing")))
        ),
        "prompt.model",
    ),
    "no turns": (
        lambda mesh: mesh.memory.AppendMessages(memory.AppendMessagesRequest(scope=scope())),
        "turns",
    ),
    "bad thread id": (
        lambda mesh: mesh.memory.AppendMessages(
            memory.AppendMessagesRequest(scope=scope(thread="../etc"), turns=[record_pb2.Turn(message=user("Hi"))])
        ),
        "scope.thread",
    ),
    "wrong dimension": (
        lambda mesh: mesh.memory.Remember(
            memory.RememberRequest(
                memories=[record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="x", embedding=[0.5, 0.5])]
            )
        ),
        "memories[0].embedding",
    ),
    "query of the wrong dimension": (
        lambda mesh: mesh.memory.Recall(recall_pb2.RecallRequest(query="x", query_embedding=[1.0])),
        "query_embedding",
    ),
    "no query": (lambda mesh: mesh.memory.Recall(recall_pb2.RecallRequest()), "query"),
    "no messages to a run": (
        lambda mesh: mesh.orchestration.StartRun(
            orchestration.StartRunRequest(input=orchestration.RunInput(thread_id=new_thread(mesh, "bad")))
        ),
        "input.messages",
    ),
    "bad run id": (
        lambda mesh: mesh.orchestration.GetRun(orchestration.GetRunRequest(run_id="a b")),
        "run_id",
    ),
    "too long a text": (
        lambda mesh: mesh.memory.Remember(
            memory.RememberRequest(
                memories=[record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="x" * (256 * 1024 + 1))]
            )
        ),
        "memories[0].text",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_field(mesh: Mesh, case: str) -> None:
    call, field = BAD[case]
    with pytest.raises(grpc.RpcError) as raised:
        call(mesh)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, raised.value
    assert fields(raised.value) == [field]


def test_a_message_over_the_limit_is_refused_typed(mesh: Mesh) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        mesh.inference.Generate(inference.GenerateRequest(prompt=prompt(system="x" * (5 * 1024 * 1024))))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(raised.value) in {"MESSAGE_TOO_LARGE", "FIELD_INVALID"}


def test_the_log_is_json_and_names_runs_and_requests_but_no_words(served: Server, mesh: Mesh) -> None:
    run_id = converse(mesh, new_thread(mesh, "log"), user("Hello"))[-1].run_id
    with pytest.raises(grpc.RpcError):
        mesh.memory.Recall(recall_pb2.RecallRequest(), metadata=[("x-request-id", "asked-in-the-test")])

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in served.log.read_text().splitlines() if line.strip()]

    ended = eventually(
        lambda: [line for line in lines() if (line["event"], line.get("run_id")) == ("run_ended", run_id)]
    )
    assert (ended[0]["state"], ended[0]["tenant"]) == ("completed", "development")
    refused = eventually(lambda: [line for line in lines() if line.get("request_id") == "asked-in-the-test"])
    assert (refused[0]["rpc_status_code"], refused[0]["tenant"]) == ("INVALID_ARGUMENT", "development")
    assert "Hello" not in served.log.read_text()


def test_data_folder_keeps_its_secrets(served: Server) -> None:
    assert Path(served.data, "state.json").stat().st_mode & 0o077 == 0


async def test_services_connect_as_a_user_that_cannot_leave_row_level_security(served: Server, mesh: Mesh) -> None:
    converse(mesh, new_thread(mesh, "ann"), user("hello"))
    state = read_state(served.data)
    assert state is not None
    owner = await asyncpg.connect(state.postgres_url)
    try:
        users = await owner.fetch(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name LIKE 'janus-%' ORDER BY 1"
        )
        roles = await owner.fetch(
            """SELECT rolname, rolsuper OR rolbypassrls AS free FROM pg_roles
               WHERE pg_has_role('janus_service', oid, 'MEMBER') ORDER BY 1"""
        )
        owned = "SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) = 'janus_service'"
        assert [row["usename"] for row in users] == ["janus_service"]
        assert [tuple(row) for row in roles] == [
            ("janus_app", False), ("janus_service", False), ("janus_worker", False),
        ]  # fmt: skip
        assert await owner.fetchval(owned) == 0
    finally:
        await owner.close()
