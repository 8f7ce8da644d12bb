"""Promises that the contract makes as a whole."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from janus_api.common.v1 import scope_pb2
from janus_kit.auth.identity import ALL_SCOPES

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto

    from .conftest import Contract

T = TypeVar("T")

UNARY, SERVER, CLIENT, BIDI = "unary", "server stream", "client stream", "bidi stream"

RPCS = {
    "janus.common.v1.StatusService": {UNARY: "GetStatus"},
    "janus.inference.v1.InferenceService": {
        UNARY: "Generate Embed CountTokens ListModels GetModel GetUsage",
        SERVER: "StreamGenerate ResumeGenerate",
    },
    "janus.memory.v1.MemoryService": {
        UNARY: """
            AppendMessages ForgetMessages GetWindow Remember Recall
            GetMemory ListMemories UpdateMemory ForgetMemory GetHistory
            Extract Erase PutBlock GetBlock ListBlocks PutSpace GetSpace ListSpaces
            Reindex GetOperation CancelOperation
        """,
        CLIENT: "Ingest Import",
        SERVER: "Export WatchOperation",
    },
    "janus.orchestration.v1.OrchestrationService": {
        UNARY: """
            PutAgent GetAgent ListAgents DeleteAgent
            CreateThread GetThread ListThreads ListMessages DeleteThread ForkThread
            StartRun GetRun ListRuns CancelRun
            SubmitToolResults ResolveApproval ProvideInput
            PutSchedule ListSchedules DeleteSchedule
            PutWebhook ListWebhooks DeleteWebhook ListWebhookDeliveries RetryWebhookDeliveries
        """,
        SERVER: "Converse WatchRun",
        BIDI: "Session",
    },
    "janus.tools.v1.ToolWorkerService": {BIDI: "Connect"},
}

# Where a writing RPC's request has its request id.
REQUEST_IDS = {
    "Generate StreamGenerate": "prompt.request_id",
    "AppendMessages ForgetMessages Remember UpdateMemory ForgetMemory Extract Erase": "request_id",
    "PutBlock PutSpace Reindex CancelOperation": "request_id",
    "Ingest Import": "config.request_id",
    "PutAgent DeleteAgent CreateThread DeleteThread ForkThread CancelRun": "request_id",
    "SubmitToolResults ResolveApproval ProvideInput PutSchedule DeleteSchedule": "request_id",
    "PutWebhook DeleteWebhook RetryWebhookDeliveries": "request_id",
    "Converse Session StartRun": "input.request_id",
}
# RPCs that change nothing which could be changed twice.
READING_RPCS = """
    GetStatus Embed CountTokens ListModels GetModel GetUsage ResumeGenerate
    GetWindow Recall GetMemory ListMemories GetHistory GetBlock ListBlocks GetSpace ListSpaces
    Export GetOperation WatchOperation
    GetAgent ListAgents GetThread ListThreads ListMessages GetRun ListRuns WatchRun ListSchedules
    ListWebhooks ListWebhookDeliveries
"""
# A worker's messages name their call, and a call has one outcome.
IDEMPOTENT_BY_CALL_ID = {"Connect"}

# The members of a streamed response, or of its event, with which a stream ends.
TERMINAL = {
    "StreamGenerate ResumeGenerate": {"finished", "failed"},
    "Export": {"completed"},
    "WatchOperation": {"ended"},
    "Converse WatchRun": {"run_completed", "run_failed", "run_cancelled", "run_expired"},
    "Session": {"ended"},
    "Connect": {"closed"},
}

STRING = FieldDescriptorProto.TYPE_STRING


def spread(table: dict[str, T]) -> dict[str, T]:
    """A table whose keys are several words as one whose keys are single words."""
    return {word: value for words, value in table.items() for word in words.split()}


def short(method: str) -> str:
    return method.rpartition(".")[2]


def field(message: DescriptorProto, name: str) -> FieldDescriptorProto | None:
    return next((each for each in message.field if each.name == name), None)


def test_every_rpc_exists_with_its_kind(contract: Contract) -> None:
    kinds = {(False, False): UNARY, (False, True): SERVER, (True, False): CLIENT, (True, True): BIDI}
    declared = {
        name: kinds[method.client_streaming, method.server_streaming] for name, method in contract.methods.items()
    }
    promised = {f"{service}.{name}": kind for service, kinds in RPCS.items() for name, kind in _each_rpc(kinds)}
    assert declared == promised


def _each_rpc(kinds: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, kind) for kind, names in kinds.items() for name in names.split()]


def test_every_rpc_declares_a_documented_scope(contract: Contract) -> None:
    documented = set(re.findall(r"^\s*`([a-z.]+)`  ", contract.comment("janus.common.v1.scope"), re.MULTILINE))
    declared = {name: method.options.Extensions[scope_pb2.scope] for name, method in contract.methods.items()}
    assert {name: scope for name, scope in declared.items() if scope not in documented} == {}
    assert set(declared.values()) == documented == ALL_SCOPES


def test_every_writing_rpc_takes_a_request_id(contract: Contract) -> None:
    paths = spread(REQUEST_IDS)
    reading = set(READING_RPCS.split())
    assert paths.keys() | reading | IDEMPOTENT_BY_CALL_ID == {short(name) for name in contract.methods}
    assert not paths.keys() & reading
    missing = []
    for name, method in contract.methods.items():
        message = contract.message(method.input_type)
        *outer, last = paths.get(short(name), "").split(".")
        for step in outer:
            inner = field(message, step)
            assert inner is not None, f"{name}: {step}"
            message = contract.message(inner.type_name)
        if last and field(message, last) is None:
            missing.append(name)
    assert missing == []


def test_every_streamed_response_carries_a_place_and_ends_in_a_terminal_event(contract: Contract) -> None:
    terminal = spread(TERMINAL)
    streams = {name: method for name, method in contract.methods.items() if method.server_streaming}
    assert terminal.keys() == {short(name) for name in streams}
    for name, method in streams.items():
        message = contract.message(method.output_type)
        event = field(message, "event")
        if field(message, "sequence") is None and event is not None:
            message = contract.message(event.type_name)
        names = {each.name for each in message.field}
        assert names & {"sequence", "cursor"}, name
        assert terminal[short(name)] <= {each.name for each in message.field if each.HasField("oneof_index")}, name


def test_every_enum_begins_with_unspecified(contract: Contract) -> None:
    for name, enum in contract.enums.items():
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", short(name)).upper()
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}_UNSPECIFIED", 0)
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value), name


def test_every_element_has_a_comment(contract: Contract) -> None:
    assert [element.name for element in contract.elements if not element.comment] == []


def test_every_error_reason_says_its_status(contract: Contract) -> None:
    statuses = {code.name for code in grpc.StatusCode} - {"OK"}
    reasons = [
        element
        for element in contract.elements
        if element.name.startswith("janus.common.v1.ErrorReason.") and element.proto.number
    ]
    assert reasons
    assert [reason.name for reason in reasons if reason.comment.partition(".")[0] not in statuses] == []


def test_json_travels_as_strings_only(contract: Contract) -> None:
    untyped = {f".google.protobuf.{name}" for name in ("Struct", "Value", "ListValue", "Any")}
    assert [name for name, each in contract.fields.items() if each.type_name in untyped] == []
    # `valid_json` says something about JSON; it holds none.
    named = {name: each.type for name, each in contract.fields.items() if name.endswith("_json")}
    assert {kind for name, kind in named.items() if not name.endswith(".valid_json")} == {STRING}
    texts = [
        element.name
        for element in contract.elements
        if isinstance(element.proto, FieldDescriptorProto)
        and element.proto.type == STRING
        and re.search(r"JSON (object|Schema|text of)", element.comment)
    ]
    assert [name for name in texts if name not in named] == []


def test_lists_page_in_one_way(contract: Contract) -> None:
    for name, method in contract.methods.items():
        request, response = contract.message(method.input_type), contract.message(method.output_type)
        pages = [
            field(request, "page_size") is not None,
            field(request, "page_token") is not None,
            field(response, "next_page_token") is not None,
        ]
        assert len(set(pages)) == 1, name
        assert pages[0] or not short(name).startswith("List"), name


def test_same_named_fields_say_the_same_bounds(contract: Contract) -> None:
    phrases = {
        "page_size": "1 to 1,000. 0: 100.",
        "page_token": "Empty: the first page.",
        "request_id": "1 to 128 characters of `[A-Za-z0-9._:-]`",
        "metadata_json": "a JSON object, at most 16 KiB, depth 8. Empty: none.",
        "expected_version": "0:",
    }
    for element in contract.elements:
        phrase = phrases.get(short(element.name), "")
        assert phrase in " ".join(element.comment.split()), element.name


def test_no_request_names_a_tenant(contract: Contract) -> None:
    assert [name for name in contract.fields if "tenant" in short(name)] == []
