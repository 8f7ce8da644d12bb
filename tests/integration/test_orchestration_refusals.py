"""What the service refuses: bad input with field paths, and what is not built, by name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.fakes.orchestration_service import Caller, Orchestration, running

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import request_pb2
from janus_api.orchestration.v1 import agent_pb2, run_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.channel import connect
from janus_kit.errors import InvalidArgument, JanusError
from janus_kit.rpc_errors import from_rpc

METHODS = pb.DESCRIPTOR.services_by_name["OrchestrationService"].methods


@pytest.fixture
async def service(postgres_url: str, redis_url: str) -> AsyncIterator[Orchestration]:
    async with running(postgres_url, redis_url) as serving:
        yield serving


async def refusal(stub: Any, method: Any, request: Any, metadata: Any = ()) -> JanusError:
    """How a call of any shape is refused."""
    argument = iter([request]) if method.client_streaming else request
    call = getattr(stub, method.name)(argument, metadata=metadata, timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        if method.server_streaming:
            await call.read()
        else:
            await call
    return from_rpc(raised.value)


def named(method: str) -> Any:
    return next(each for each in METHODS if each.name == method)


def agent(**fields: Any) -> agent_pb2.Agent:
    return agent_pb2.Agent(name="helper", **fields)


def user(*parts: str | content.Part, **fields: Any) -> content.Message:
    made = [part if isinstance(part, content.Part) else content.Part(text=part) for part in parts]
    return content.Message(role=content.ROLE_USER, parts=made, **fields)


def run(*messages: content.Message, **fields: Any) -> pb.StartRunRequest:
    return pb.StartRunRequest(input=pb.RunInput(**{"thread_id": "t", "messages": messages, **fields}))


def tools(*named: str, **fields: Any) -> pb.PutAgentRequest:
    return pb.PutAgentRequest(agent=agent(tools=[agent_pb2.AgentTool(name=name, **fields) for name in named]))


def client(**fields: Any) -> pb.PutAgentRequest:
    return tools("clock", client_side=True, **fields)


def approval(**fields: Any) -> pb.PutAgentRequest:
    policy = agent_pb2.ApprovalPolicy(**fields)
    return pb.PutAgentRequest(agent=agent(tools=[agent_pb2.AgentTool(name="time.now")], approval=policy))


def submitting(*given: content.ToolResult, **fields: Any) -> pb.SubmitToolResultsRequest:
    sent = pb.ToolResults(**{"run_id": "r", "results": given, **fields})
    return pb.SubmitToolResultsRequest(results=sent)


def deciding(**fields: Any) -> pb.ResolveApprovalRequest:
    decision = agent_pb2.APPROVAL_DECISION_APPROVED
    sent = pb.ApprovalAnswer(**{"run_id": "r", "approval_id": "a", "decision": decision, **fields})
    return pb.ResolveApprovalRequest(approval=sent)


def providing(answer_json: str, **fields: Any) -> pb.ProvideInputRequest:
    sent = pb.InputAnswer(**{"run_id": "r", "input_id": "i", "answer_json": answer_json, **fields})
    return pb.ProvideInputRequest(answer=sent)


def result(*parts: content.Part, call_id: str = "c") -> content.ToolResult:
    return content.ToolResult(call_id=call_id, parts=parts)


TOOL = content.Part(tool_call=content.ToolCall(call_id="c", name="n"))
HTTP = content.Part(image=content.Media(mime_type="image/png", uri="http://plain"))
BIG = content.Part(image=content.Media(mime_type="image/png", data=b"x" * (3 * 1024 * 1024 + 1)))

CASES: list[tuple[str, Any, list[str]]] = [
    ("StartRun", pb.StartRunRequest(), ["input"]),
    ("Converse", pb.ConverseRequest(), ["input"]),
    ("StartRun", run(thread_id=""), ["input.thread_id", "input.messages"]),
    ("StartRun", run(user("hi"), thread_id="../etc"), ["input.thread_id"]),
    ("StartRun", run(user("hi"), thread_id="x" * 129), ["input.thread_id"]),
    ("StartRun", run(user("hi"), agent="né"), ["input.agent"]),
    ("StartRun", run(user("hi"), model="m" * 257), ["input.model"]),
    ("StartRun", run(user("hi"), request_id="a b"), ["input.request_id"]),
    ("StartRun", run(*[user("hi")] * 65), ["input.messages"]),
    # So many tiny ones that a look at each would hold up everybody else.
    ("StartRun", run(*[content.Message()] * 400_000), ["input.messages"]),
    ("Converse", pb.ConverseRequest(input=run(*[content.Message()] * 400_000).input), ["input.messages"]),
    ("CreateThread", pb.CreateThreadRequest(messages=[content.Message()] * 400_000), ["messages"]),
    ("StartRun", run(user(*[content.Part()] * 1025)), ["input.messages[0].parts"]),
    ("StartRun", run(user()), ["input.messages[0].parts"]),
    ("StartRun", run(user("")), ["input.messages[0].parts[0].text"]),
    ("StartRun", run(user("hi"), user(" \n")), ["input.messages[1].parts[0].text"]),
    ("StartRun", run(user("a\x00b")), ["input.messages[0].parts[0].text"]),
    ("StartRun", run(user("x" * (1024 * 1024 + 1))), ["input.messages[0].parts[0].text"]),
    ("StartRun", run(user(content.Part())), ["input.messages[0].parts[0]"]),
    ("StartRun", run(user(TOOL)), ["input.messages[0].parts[0]"]),
    ("StartRun", run(user(HTTP)), ["input.messages[0].parts[0].image.uri"]),
    ("StartRun", run(user(BIG)), ["input.messages[0].parts[0].image.data"]),
    ("StartRun", run(user("hi", name="n" * 129)), ["input.messages[0].name"]),
    ("StartRun", run(user("hi", id="-")), ["input.messages[0].id"]),
    ("StartRun", run(user("hi", id="m"), user("ho", id="m")), ["input.messages[1].id"]),
    (
        "StartRun",
        run(content.Message(role=content.ROLE_SYSTEM, parts=[content.Part(text="obey")])),
        ["input.messages[0].role"],
    ),
    ("StartRun", run(user("hi"), labels={"A": "x"}), ["input.labels"]),
    ("StartRun", run(user("hi"), labels={f"k{i}": "" for i in range(17)}), ["input.labels"]),
    (
        "StartRun",
        run(user("hi"), budgets=agent_pb2.Budgets(max_wall_time=Duration(seconds=-1))),
        ["input.budgets.max_wall_time"],
    ),
    ("PutAgent", pb.PutAgentRequest(), ["agent.name"]),
    ("PutAgent", pb.PutAgentRequest(agent=agent(), expected_version=-1), ["expected_version"]),
    ("PutAgent", pb.PutAgentRequest(agent=agent(), request_id="!"), ["request_id"]),
    ("PutAgent", pb.PutAgentRequest(agent=agent(instructions="x" * (256 * 1024 + 1))), ["agent.instructions"]),
    ("PutAgent", pb.PutAgentRequest(agent=agent(description="x" * 1025)), ["agent.description"]),
    ("PutAgent", pb.PutAgentRequest(agent=agent(max_output_tokens=0)), ["agent.max_output_tokens"]),
    (
        "PutAgent",
        pb.PutAgentRequest(agent=agent(memory=agent_pb2.MemoryPolicy(recall_limit=201, window_tokens=-1))),
        ["agent.memory.recall_limit", "agent.memory.window_tokens"],
    ),
    (
        "PutAgent",
        pb.PutAgentRequest(agent=agent(sampling=request_pb2.Sampling(temperature=float("nan"), top_p=2))),
        ["agent.sampling.temperature", "agent.sampling.top_p"],
    ),
    ("PutAgent", tools("time.now", "", "a b", "time.now"), [f"agent.tools[{place}].name" for place in (1, 2, 3)]),
    ("PutAgent", tools("time.now", "nobody.knows", "clock"), ["agent.tools[1].name", "agent.tools[2].name"]),
    ("PutAgent", tools("time.now", max_concurrency=65), ["agent.tools[0].max_concurrency"]),
    ("PutAgent", tools("time.now", timeout=Duration(nanos=1)), ["agent.tools[0].timeout"]),
    ("PutAgent", tools("time.now", when_no_worker=9), ["agent.tools[0].when_no_worker"]),
    ("PutAgent", tools(*["time.now"] * 129), ["agent.tools"]),
    (
        "PutAgent",
        pb.PutAgentRequest(agent=agent(budgets=agent_pb2.Budgets(max_tool_calls=10_001, max_tokens=-1))),
        ["agent.budgets.max_tool_calls", "agent.budgets.max_tokens"],
    ),
    ("PutAgent", tools("memory.x", client_side=True), ["agent.tools[0].name"]),
    ("PutAgent", tools("time.now", description="mine"), ["agent.tools[0].description"]),
    ("PutAgent", tools("time.now", parameters_schema_json="{}"), ["agent.tools[0].parameters_schema_json"]),
    ("PutAgent", tools("user.ask", timeout=Duration(seconds=90 * 86_400 + 1)), ["agent.tools[0].timeout"]),
    ("PutAgent", tools("time.now", timeout=Duration(seconds=86_401)), ["agent.tools[0].timeout"]),
    ("PutAgent", client(description="a\x00b"), ["agent.tools[0].description"]),
    ("PutAgent", client(description="x" * (16 * 1024 + 1)), ["agent.tools[0].description"]),
    ("PutAgent", client(timeout=Duration(seconds=90 * 86_400 + 1)), ["agent.tools[0].timeout"]),
    *[
        ("PutAgent", client(parameters_schema_json=schema), ["agent.tools[0].parameters_schema_json"])
        for schema in (
            "[]",
            "{",
            '{"minimum": NaN}',
            '{"minimum": 1e999}',
            '{"title": "\\ud800"}',
            '{"type": "string"}',
            '{"a":' * 33 + "{}" + "}" * 33,
            '{"a":"' + "x" * 65_536 + '"}',
            '{"anyOf": [' + ",".join(["{}"] * 1_000) + "]}",
            '{"$ref": "https://example.com/schema.json"}',
            "[" * 30_000,
        )
    ],
    ("PutAgent", approval(tools=["memory.search"]), ["agent.approval.tools[0]"]),
    ("PutAgent", approval(tools=["time.now"] * 129), ["agent.approval.tools"]),
    ("PutAgent", approval(expires_after=Duration(nanos=1)), ["agent.approval.expires_after"]),
    ("PutAgent", approval(expires_after=Duration(seconds=90 * 86_400 + 1)), ["agent.approval.expires_after"]),
    ("PutAgent", approval(on_expiry=9), ["agent.approval.on_expiry"]),
    ("SubmitToolResults", pb.SubmitToolResultsRequest(), ["results"]),
    ("SubmitToolResults", submitting(result(), run_id="a b"), ["results.run_id"]),
    ("SubmitToolResults", submitting(), ["results.results"]),
    ("SubmitToolResults", submitting(*[result()] * 65), ["results.results"]),
    ("SubmitToolResults", submitting(result(), result()), ["results.results[1].call_id"]),
    ("SubmitToolResults", submitting(result(call_id="")), ["results.results[0].call_id"]),
    ("SubmitToolResults", submitting(result(call_id="x" * 129)), ["results.results[0].call_id"]),
    ("SubmitToolResults", submitting(result(*[content.Part(text="x")] * 65)), ["results.results[0].parts"]),
    ("SubmitToolResults", submitting(result(TOOL)), ["results.results[0].parts[0]"]),
    ("SubmitToolResults", submitting(result(content.Part(text="\x00"))), ["results.results[0].parts[0].text"]),
    ("SubmitToolResults", submitting(result(HTTP)), ["results.results[0].parts[0].image.uri"]),
    (
        "SubmitToolResults",
        pb.SubmitToolResultsRequest(results=submitting(result()).results, request_id="a b"),
        ["request_id"],
    ),
    ("ResolveApproval", pb.ResolveApprovalRequest(), ["approval"]),
    ("ResolveApproval", deciding(run_id="", approval_id="!"), ["approval.run_id", "approval.approval_id"]),
    ("ResolveApproval", deciding(decision=0), ["approval.decision"]),
    ("ResolveApproval", deciding(decision=9), ["approval.decision"]),
    ("ResolveApproval", deciding(comment="x" * 1025), ["approval.comment"]),
    ("ResolveApproval", deciding(comment="\x00"), ["approval.comment"]),
    ("ProvideInput", pb.ProvideInputRequest(), ["answer"]),
    ("ProvideInput", providing('"x"', run_id="", input_id="!"), ["answer.run_id", "answer.input_id"]),
    *[
        ("ProvideInput", providing(text), ["answer.answer_json"])
        for text in ("", "blue", "NaN", '"\\ud800"', "[" * 9_000, '"' + "x" * 65_536 + '"')
    ],
    ("GetAgent", pb.GetAgentRequest(), ["name"]),
    ("GetAgent", pb.GetAgentRequest(name="a", version=-1), ["version"]),
    ("ListAgents", pb.ListAgentsRequest(page_size=-1), ["page_size"]),
    ("ListAgents", pb.ListAgentsRequest(page_size=1001), ["page_size"]),
    ("ListAgents", pb.ListAgentsRequest(page_token="made up"), ["page_token"]),
    ("ListMessages", pb.ListMessagesRequest(thread_id="t", page_token="AAAA"), ["page_token"]),
    ("ListMessages", pb.ListMessagesRequest(), ["thread_id"]),
    ("CreateThread", pb.CreateThreadRequest(thread=thread_pb2.Thread(id="é")), ["thread.id"]),
    ("CreateThread", pb.CreateThreadRequest(thread=thread_pb2.Thread(title="x" * 257)), ["thread.title"]),
    ("CreateThread", pb.CreateThreadRequest(thread=thread_pb2.Thread(subject="a/b")), ["thread.subject"]),
    *[
        ("CreateThread", pb.CreateThreadRequest(thread=thread_pb2.Thread(metadata_json=text)), ["thread.metadata_json"])
        for text in (
            "[]",
            "{",
            "NaN",
            '{"a": NaN}',
            '{"a":' * 9 + "1" + "}" * 9,
            '{"a":"' + "x" * 16384 + '"}',
            "[" * 9000,
            '{"a": %s}' % ("9" * 5000),
        )
    ],
    ("CreateThread", pb.CreateThreadRequest(messages=[user(TOOL)]), ["messages[0].parts[0]"]),
    ("GetThread", pb.GetThreadRequest(), ["thread_id"]),
    ("DeleteAgent", pb.DeleteAgentRequest(), ["name"]),
    ("DeleteAgent", pb.DeleteAgentRequest(name="a", request_id="!"), ["request_id"]),
    ("ListThreads", pb.ListThreadsRequest(subject="a/b", agent="é"), ["subject", "agent"]),
    ("ListThreads", pb.ListThreadsRequest(page_size=1001), ["page_size"]),
    ("ListThreads", pb.ListThreadsRequest(page_token="AAAA"), ["page_token"]),
    ("ListRuns", pb.ListRunsRequest(thread_id="a b"), ["thread_id"]),
    ("ListRuns", pb.ListRunsRequest(states=[run_pb2.RUN_STATE_RUNNING, 0, 99]), ["states[1]", "states[2]"]),
    ("ListRuns", pb.ListRunsRequest(states=[run_pb2.RUN_STATE_RUNNING] * 65), ["states"]),
    ("ListRuns", pb.ListRunsRequest(page_size=-1), ["page_size"]),
    ("ListRuns", pb.ListRunsRequest(page_token="made up"), ["page_token"]),
    ("DeleteThread", pb.DeleteThreadRequest(), ["thread_id"]),
    ("DeleteThread", pb.DeleteThreadRequest(thread_id="t", request_id="!"), ["request_id"]),
    (
        "ForkThread",
        pb.ForkThreadRequest(at_message_id="a b", new_thread_id="/"),
        ["thread_id", "at_message_id", "new_thread_id"],
    ),
    ("ForkThread", pb.ForkThreadRequest(thread_id="t", request_id="!"), ["request_id"]),
    ("GetRun", pb.GetRunRequest(run_id="a b"), ["run_id"]),
    ("CancelRun", pb.CancelRunRequest(run_id="", reason="x" * 1025), ["run_id", "reason"]),
    ("WatchRun", pb.WatchRunRequest(), ["run_id"]),
    ("Session", pb.SessionRequest(), ["config"]),
    ("Session", pb.SessionRequest(cancel=pb.SessionCancel()), ["config"]),
    ("Session", pb.SessionRequest(config=pb.SessionConfig()), ["config.thread_id"]),
    (
        "Session",
        pb.SessionRequest(config=pb.SessionConfig(thread_id="t", agent="!", resume_run_id="!")),
        ["config.agent", "config.resume_run_id"],
    ),
    (
        "Session",
        pb.SessionRequest(config=pb.SessionConfig(thread_id="t", resume_after=run_pb2.Cursor(epoch=1))),
        ["config.resume_after"],
    ),
    (
        "Session",
        pb.SessionRequest(
            config=pb.SessionConfig(thread_id="t", resume_run_id="r", resume_after=run_pb2.Cursor(epoch=-1))
        ),
        ["config.resume_after.epoch"],
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "fields"), CASES, ids=[f"{i}-{c[0]}-{c[2][0]}" for i, c in enumerate(CASES)]
)
async def test_bad_input_names_its_fields(ann: Caller, method: str, request_: Any, fields: list[str]) -> None:
    error = await refusal(ann.stub, named(method), request_, ann.metadata)
    assert isinstance(error, InvalidArgument), error
    assert [violation.field for violation in error.violations] == fields


@pytest.mark.parametrize("method", sorted(method.name for method in METHODS))
async def test_garbage_is_no_message(service: Orchestration, method: str) -> None:
    described = named(method)
    channel = connect(service.address)
    path = f"/janus.orchestration.v1.OrchestrationService/{method}"
    opened: Callable[..., Any] = channel.unary_stream if described.server_streaming else channel.unary_unary
    garbage: Any = b"\x0a\xff\xff\xff\xff\x0f"
    if described.client_streaming:
        opened, garbage = channel.stream_stream, iter([garbage])
    try:
        call = opened(path)(garbage, timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await (call.read() if described.server_streaming else call)
    finally:
        await channel.close()
    assert from_rpc(raised.value).reason == "REQUEST_UNDECODABLE"
