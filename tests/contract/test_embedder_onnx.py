"""Sentence models in folders of one's own: pooling, length, truncation, and what is no folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.fakes.memory_service import refused, running
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import recall_pb2, record_pb2, scope_pb2, space_pb2
from janus_kit.errors import InvalidArgument, Unavailable
from janus_memory.adapters.onnx_embedder import OnnxModels
from janus_memory.ports import Purpose

WORDS = {"[PAD]": 0, "[UNK]": 1, "heron": 2, "otter": 3, "river": 4, "sky": 5}
# One token's state is its own row: what a text's vector must be can be told by hand.
STATES = np.array([[9, 9, 9], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 4, 0]], np.float32)


def write(folder: Path, **more: object) -> None:
    """A model of two nodes, its tokenizer, and further files by name."""
    folder.mkdir()
    nodes = [
        helper.make_node("Gather", ["states", "input_ids"], ["found"], axis=0),
        helper.make_node("Identity", ["found"], ["last_hidden_state"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    state = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "length", 3])
    graph = helper.make_graph(nodes, "tiny", [ids], [state], [numpy_helper.from_array(STATES, "states")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in more.items():
        file = folder / name.replace("__", "/").replace("_json", ".json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


@pytest.fixture
def models(tmp_path: Path) -> Iterator[OnnxModels]:
    made = OnnxModels(str(tmp_path / "models"), 1)
    (tmp_path / "models").mkdir()
    yield made
    made.close()


async def vectors(models: OnnxModels, folder: str, *texts: str) -> list[list[float]]:
    return await models.named(f"onnx/{folder}").embed(texts, 0, Purpose.DOCUMENT)


async def test_a_text_is_the_mean_of_its_tokens_at_length_one(models: OnnxModels, tmp_path: Path) -> None:
    write(tmp_path / "models" / "tiny")
    (found,) = await vectors(models, "tiny", "heron otter")
    assert found == pytest.approx([0.5**0.5, 0.5**0.5, 0])


async def test_texts_beside_it_and_padding_change_nothing(models: OnnxModels, tmp_path: Path) -> None:
    """The state of the padding is far from zero."""
    write(tmp_path / "models" / "tiny")
    texts = ["heron", "otter river sky heron " * 20, "sky river", "river", "heron heron otter"] * 15
    alone = [(await vectors(models, "tiny", text))[0] for text in texts[:5]]
    assert await vectors(models, "tiny", *texts) == [pytest.approx(vector) for vector in alone * 15]


async def test_what_is_too_long_for_the_model_is_cut(models: OnnxModels, tmp_path: Path) -> None:
    write(tmp_path / "models" / "short", sentence_bert_config_json={"max_seq_length": 2})
    (found,) = await vectors(models, "short", "heron heron otter otter otter")
    assert found == pytest.approx([1, 0, 0])


async def test_a_model_may_pool_by_its_first_token_and_leave_lengths_alone(models: OnnxModels, tmp_path: Path) -> None:
    write(
        tmp_path / "models" / "cls",
        **{"1_Pooling__config_json": {"pooling_mode_cls_token": True}, "modules_json": [{"type": "x.Pooling"}]},
    )
    (found,) = await vectors(models, "cls", "sky heron")
    assert found == pytest.approx([3, 4, 0])


async def test_pooling_may_be_named_instead_of_flagged(models: OnnxModels, tmp_path: Path) -> None:
    more = {"1_Pooling__config_json": {"pooling_mode": "cls"}, "modules_json": [{"type": "x.Pooling"}]}
    write(tmp_path / "models" / "named", **more)
    assert await vectors(models, "named", "sky heron") == [pytest.approx([3, 4, 0])]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("1_Pooling__config_json", {"pooling_mode_lasttoken": True}),
        ("1_Pooling__config_json", {"pooling_mode": "max"}),
        ("1_Pooling__config_json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
        ("modules_json", [{"type": "x.Transformer"}, {"type": "x.Pooling"}, {"type": "x.Dense"}]),
        ("modules_json", ["Pooling"]),
        ("sentence_bert_config_json", {"max_seq_length": "many"}),
    ],
)
async def test_a_folder_that_would_be_read_wrongly_is_refused(
    models: OnnxModels, tmp_path: Path, file: str, content: object
) -> None:
    """Wrong vectors look like right ones."""
    write(tmp_path / "models" / "odd", **{file: content})
    with pytest.raises(Unavailable) as raised:
        await vectors(models, "odd", "heron")
    assert file.replace("__", "/").replace("_json", ".json") in raised.value.message


@pytest.mark.parametrize("name", ["..", "../tiny", "a/b", "", ".hidden", "a\\b", "a\x00"])
def test_what_is_no_folder_is_no_model(models: OnnxModels, name: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        models.named(f"onnx/{name}")
    assert raised.value.reason == "MODEL_NOT_FOUND"


async def test_a_link_that_leads_elsewhere_is_no_model(models: OnnxModels, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere")
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        await vectors(models, "linked", "heron")


async def test_a_damaged_model_is_told_without_its_path(models: OnnxModels, tmp_path: Path) -> None:
    write(tmp_path / "models" / "broken")
    (tmp_path / "models" / "broken" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(Unavailable) as raised:
        await vectors(models, "broken", "heron")
    assert str(tmp_path) not in raised.value.message


async def test_a_space_of_such_a_model_is_searched_with_it(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write(tmp_path / "models" / "tiny")
    async with running(postgres_url, redis_url, onnx_dir=str(tmp_path / "models")) as memory:
        ann = memory.caller()
        absent = pb.PutSpaceRequest(space=space_pb2.Space(name="s", embedding_model="onnx/absent"))
        error = await refused(ann.call("PutSpace", absent))
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "MODEL_NOT_FOUND")
        there = pb.PutSpaceRequest(space=space_pb2.Space(name="s", embedding_model="onnx/tiny"))
        assert (await ann.call("PutSpace", there)).space.dimensions == 3
        memories = [
            record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=text) for text in ("otter", "sky", "heron")
        ]
        scope = scope_pb2.Scope(space="s")
        waits = scope_pb2.CONSISTENCY_READ_YOUR_WRITES
        await ann.call("Remember", pb.RememberRequest(scope=scope, memories=memories, consistency=waits))
        # No word in common: only the vectors know.
        found = await ann.call("Recall", recall_pb2.RecallRequest(scope=scope, query="heron otter otter", explain=True))
        similarities = {
            hit.memory.text: next(each.raw for each in hit.details if each.leg == "dense_turn") for hit in found.hits
        }
        assert similarities["otter"] == pytest.approx(2 / 5**0.5, abs=1e-5)
        assert similarities["heron"] == pytest.approx(1 / 5**0.5, abs=1e-5)
        assert not found.degraded
