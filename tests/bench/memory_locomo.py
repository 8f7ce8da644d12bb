"""LoCoMo over gRPC: how much of the evidence of a question recall finds.

Data and evaluation are not part of this repository: they are read from a folder beside the checkout,
as are the terms of the data. Every conversation is a tenant of its own.
"""

import importlib.util
import sys
import uuid
from datetime import UTC
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from tests.bench.table import row

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_api.memory.v1 import recall_pb2, record_pb2, scope_pb2, space_pb2

KS = (5, 10, 25, 50)
_AIMS = {"": (69, 79, 86, 90), "onnx": (71, 80, 87, 92)}
_BATCH = 100
SPACE = "locomo"


class Retriever:
    """What the evaluation asks: a conversation to index, then turns for a question, by their ids."""

    def __init__(self, stub: Any, space: space_pb2.Space, exact: bool = False) -> None:
        self._stub = stub
        self._space = space
        self._exact = exact
        self._metadata = (("janus-tenant", f"locomo-{uuid.uuid4().hex[:12]}"),)

    def index(self, items: list[dict[str, Any]]) -> None:
        """Append the turns, session by session, and wait until all of them can be found."""
        self._stub.PutSpace(pb.PutSpaceRequest(space=self._space), metadata=self._metadata)
        scope = scope_pb2.Scope(space=SPACE, thread="talk")
        for start in range(0, len(items), _BATCH):
            turns = [_turn(item) for item in items[start : start + _BATCH]]
            self._stub.AppendMessages(
                pb.AppendMessagesRequest(scope=scope, turns=turns, consistency=scope_pb2.CONSISTENCY_READ_YOUR_WRITES),
                metadata=self._metadata,
            )
        while self._stub.GetSpace(pb.GetSpaceRequest(name=SPACE), metadata=self._metadata).space.index_backlog:
            pass

    def search(self, query: str, k: int) -> list[str]:
        """Ids of the best turns."""
        request = recall_pb2.RecallRequest(
            scope=scope_pb2.Scope(space=SPACE),
            query=query,
            limit=k,
            kinds=[recall_pb2.RECORD_KIND_TURN],
            exact=self._exact,
        )
        answer = self._stub.Recall(request, metadata=self._metadata)
        if answer.degraded:
            raise SystemExit(f"recall was degraded: {list(answer.degraded)}")
        return [hit.turn.message.id for hit in answer.hits]


def measure(address: str, folder: Path, model: str, backends: bool) -> None:
    """Rows of the table: evidence recall of a model, and whether the backends agree."""
    evaluation = _evaluation(folder / "locomo_eval.py")
    data = evaluation.load(folder / "locomo_dev.json")
    with grpc.insecure_channel(address) as channel:
        stub = rpc.MemoryServiceStub(channel)
        space = space_pb2.Space(name=SPACE, embedding_model=model)
        result = evaluation.evaluate(lambda: Retriever(stub, space), data)
        found = result["all"]
        name = model or "no model"
        for k, aim in zip(KS, _AIMS[model.partition("/")[0]], strict=True):
            row(f"LoCoMo evidence recall@{k}, {name}", f"{found[f'recall@{k}']:.1f}", aim=f"≥ {aim}")
        row("  recall of a question, p50", f"{result['search_ms_p50']:.1f} ms")
        if backends:
            _compare(stub, data, model)


def _compare(stub: Any, data: list[Any], model: str) -> None:
    """The same conversation in both backends: exact answers must be the same, others nearly."""
    talk = data[0]
    kinds = (space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA)
    for exact in (True, False):
        both = []
        for backend in kinds:
            retriever = Retriever(stub, space_pb2.Space(name=SPACE, embedding_model=model, backend=backend), exact)
            retriever.index(talk.items)
            both.append([retriever.search(question.text, 10) for question in talk.questions])
        overlap = [len(set(ours) & set(theirs)) / max(len(ours), 1) for ours, theirs in zip(*both, strict=True)]
        same = sum(ours == theirs for ours, theirs in zip(*both, strict=True)) / len(overlap)
        points = [100 * _mean(_evidence(talk.questions, side)) for side in both]
        mode = "exact" if exact else "as it is"
        row(
            f"pgvector and Chroma, {mode}: same ten in the same order",
            f"{100 * same:.1f} %",
            ratio=f"{100 * sum(overlap) / len(overlap):.1f} % equal",
            aim="100 %" if exact else "",
        )
        row("  evidence recall@10, points apart", f"{abs(points[0] - points[1]):.2f}", aim="≤ 0.5")


def _evidence(questions: list[Any], found: list[list[str]]) -> list[float]:
    """The share of every question's evidence that was found."""
    return [len(each.evidence & set(ids)) / len(each.evidence) for each, ids in zip(questions, found, strict=True)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _turn(item: dict[str, Any]) -> record_pb2.Turn:
    turn = record_pb2.Turn(
        message=content.Message(
            role=content.ROLE_USER, id=item["id"], name=item["speaker"], parts=[content.Part(text=item["text"])]
        )
    )
    if item["timestamp"]:
        turn.occurred_at.FromDatetime(item["timestamp"].replace(tzinfo=UTC))
    return turn


def _evaluation(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("locomo_eval", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
