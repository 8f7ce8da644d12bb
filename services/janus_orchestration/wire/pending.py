"""What runs wait for, and the answers to it: decode, check, encode."""

from janus_api.orchestration.v1 import agent_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.json_schema.rules import BrokenRule, read
from janus_kit.validate import Violations
from janus_orchestration.answers import Given, Reply
from janus_orchestration.model import Pending, PendingKind, Verdict
from janus_orchestration.wire.content import check_tool_result, timestamp
from janus_orchestration.wire.tools import call_to

VERDICTS = {
    Verdict.APPROVED: agent_pb2.APPROVAL_DECISION_APPROVED,
    Verdict.DECLINED: agent_pb2.APPROVAL_DECISION_DECLINED,
}
_DECISIONS = {number: verdict for verdict, number in VERDICTS.items()}

_MOST_RESULTS = 64
_MOST_ANSWER_BYTES = 64 * 1024
_MOST_COMMENT = 1_024


def pending_to(pending: Pending) -> run_pb2.PendingCall:
    message = run_pb2.PendingCall(expires_at=timestamp(pending.expires_at))
    match pending.kind:
        case PendingKind.TOOL:
            message.tool.call.CopyFrom(call_to(pending.call))
        case PendingKind.APPROVAL:
            message.approval.CopyFrom(approval_to(pending))
        case PendingKind.INPUT:
            message.input.CopyFrom(input_to(pending))
        case PendingKind.AGENT:
            message.agent.call.CopyFrom(call_to(pending.call))
            message.agent.child_run_id = pending.child_run
    return message


def approval_to(pending: Pending) -> run_pb2.PendingApproval:
    return run_pb2.PendingApproval(
        approval_id=pending.id,
        call=call_to(pending.call),
        arguments_sha256=pending.arguments_sha256,
        reason=pending.text,
    )


def input_to(pending: Pending) -> run_pb2.PendingInput:
    return run_pb2.PendingInput(input_id=pending.id, question=pending.text, schema_json=pending.schema_json)


def results_from(sent: pb.ToolResults, is_set: bool) -> Reply:
    """Raises InvalidArgument with the paths of SubmitToolResults (`results.…`)."""
    check = Violations()
    if not check.present("results", is_set):
        check.done()
    check.id("results.run_id", sent.run_id)
    if not check.count("results.results", sent.results, at_least=1, at_most=_MOST_RESULTS):
        check.done()
    seen: set[str] = set()
    for place, result in enumerate(sent.results):
        where = f"results.results[{place}]"
        check_tool_result(check, where, result)
        check.require(result.call_id not in seen, f"{where}.call_id", "must be unique in the request")
        seen.add(result.call_id)
    check.done()
    given = [
        Given(PendingKind.TOOL, each.call_id, Verdict.ANSWERED, each.SerializeToString(deterministic=True))
        for each in sent.results
    ]
    return Reply(sent.run_id, given)


def approval_from(sent: pb.ApprovalAnswer, is_set: bool) -> Reply:
    """Raises InvalidArgument with the paths of ResolveApproval (`approval.…`)."""
    check = Violations()
    if not check.present("approval", is_set):
        check.done()
    check.id("approval.run_id", sent.run_id)
    check.id("approval.approval_id", sent.approval_id)
    check.specified("approval.decision", sent.decision, _DECISIONS)
    check.length("approval.comment", sent.comment, at_most=_MOST_COMMENT)
    check.done()
    verdict = _DECISIONS[sent.decision]
    return Reply(sent.run_id, [Given(PendingKind.APPROVAL, sent.approval_id, verdict, sent.comment.encode())])


def answer_from(sent: pb.InputAnswer, is_set: bool) -> Reply:
    """Raises InvalidArgument with the paths of ProvideInput (`answer.…`)."""
    check = Violations()
    if not check.present("answer", is_set):
        check.done()
    check.id("answer.run_id", sent.run_id)
    check.id("answer.input_id", sent.input_id)
    content = sent.answer_json.encode()
    if check.size("answer.answer_json", content, at_least=1, at_most=_MOST_ANSWER_BYTES):
        try:
            read(sent.answer_json)
        except BrokenRule as broken:
            check.add("answer.answer_json", str(broken))
    check.done()
    return Reply(sent.run_id, [Given(PendingKind.INPUT, sent.input_id, Verdict.ANSWERED, content)])
