"""`onnx/<folder>`: a sentence model in a folder of one's own, run in this process.

A folder is what sentence-transformers writes and exports to ONNX: `model.onnx`,
`tokenizer.json`, and where they are there `sentence_bert_config.json` (the
longest text, in tokens), `1_Pooling/config.json` and `modules.json`. Without
them: the mean over the tokens, at length 1. The packages are the extra
`janus-mesh[onnx]`; they are imported with the model, on first use, on a thread.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_kit.errors import InvalidArgument, Unavailable
from janus_kit.libraries import imported
from janus_memory.model import ONNX_PREFIX
from janus_memory.ports import Purpose, UnusableEmbedding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BATCH = 32
_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
_FLAG = "pooling_mode_"
_POOLINGS = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
_LONGEST = 512
"""Tokens of a text where the model does not say: what nearly all of them were made for."""


class OnnxModels:
    """Embedders by folder below ``directory``; None: there are none. ``threads`` 0: half of the processor's."""

    def __init__(self, directory: str | None, threads: int) -> None:
        self._directory = Path(directory) if directory else None
        self._threads = threads or max(1, (os.cpu_count() or 2) // 2)
        # One after the other: a model uses its threads by itself.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="onnx")
        self._loaded: dict[str, _Model] = {}

    def named(self, model: str) -> "OnnxEmbedder":
        """Raises InvalidArgument / MODEL_NOT_FOUND for a name that cannot be a folder's."""
        name = model.removeprefix(ONNX_PREFIX)
        if not _FOLDER.fullmatch(name):
            raise InvalidArgument(
                "space.embedding_model",
                "must be onnx/ and the name of a folder, of letters, digits, '.', '_' and '-'",
                reason="MODEL_NOT_FOUND",
                metadata={"model": model},
            )
        return OnnxEmbedder(name, self.run)

    async def run(self, name: str, texts: Sequence[str]) -> list[list[float]]:
        """The vectors of some texts. Raises Unavailable("embedder")."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._embedded, name, texts)

    def close(self) -> None:
        """End what waits; what runs is left to end by itself."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _embedded(self, name: str, texts: Sequence[str]) -> list[list[float]]:
        model = self._loaded.get(name)
        if model is None:
            model = self._loaded[name] = _loaded(self._folder(name), self._threads)
        return model.embed(texts)

    def _folder(self, name: str) -> Path:
        if self._directory is None:
            raise Unavailable("embedder", "this server has no folder of ONNX models: memory.onnx_dir is not set")
        root = self._directory.resolve()
        folder = (root / name).resolve()
        # A link may lead elsewhere.
        if folder.parent != root or not (folder / "model.onnx").is_file() or not (folder / "tokenizer.json").is_file():
            raise Unavailable("embedder", f"there is no ONNX model '{name}' on this server")
        return folder


class OnnxEmbedder:
    """Implements ports.Embedder for one folder."""

    def __init__(self, name: str, run: Callable[[str, Sequence[str]], Any]) -> None:
        self._name = name
        self._run = run

    async def embed(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        """Vectors of the model's own length, whatever is asked for. Batches are of texts of similar length."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        made: list[list[float]] = [[] for _ in texts]
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            vectors = await self._run(self._name, [texts[place] for place in places])
            for place, vector in zip(places, vectors, strict=True):
                made[place] = vector
        return made


@dataclass(frozen=True)
class _Model:
    """A loaded model. ``pooling``: `mean` or `cls`."""

    session: Any
    tokenizer: Any
    inputs: frozenset[str]
    output: str
    pooling: str
    normalises: bool

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        import numpy as np

        encoded = self.tokenizer.encode_batch(list(texts))
        longest = max(len(each.ids) for each in encoded)
        ids = np.zeros((len(encoded), longest), np.int64)
        mask = np.zeros((len(encoded), longest), np.int64)
        for row, each in enumerate(encoded):
            ids[row, : len(each.ids)] = each.ids
            mask[row, : len(each.ids)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        fed = {name: value for name, value in given.items() if name in self.inputs}
        (hidden,) = self.session.run([self.output], fed)
        vectors = self._pooled(hidden.astype(np.float64), mask)
        if not np.isfinite(vectors).all():
            raise UnusableEmbedding("the ONNX model gave numbers that are not finite")
        found: list[list[float]] = vectors.astype(np.float32).tolist()
        return found

    def _pooled(self, hidden: "NDArray[np.float64]", mask: "NDArray[np.int64]") -> "NDArray[np.float64]":
        import numpy as np

        if hidden.ndim == 3 and self.pooling == "cls":
            hidden = hidden[:, 0]
        elif hidden.ndim == 3:
            weights = mask[:, :, None].astype(np.float64)
            hidden = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
        if self.normalises:
            hidden = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-12)
        return hidden


def _loaded(folder: Path, threads: int) -> _Model:
    try:
        runtime, tokenizers = imported("onnxruntime"), imported("tokenizers")
    except ImportError:
        raise Unavailable("embedder", "ONNX models need the packages of janus-mesh[onnx]") from None
    try:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = runtime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        # Both raise whatever they like about a file that is damaged.
        raise Unavailable("embedder", f"the ONNX model '{folder.name}' cannot be loaded") from error
    own = tokenizer.truncation["max_length"] if tokenizer.truncation else _LONGEST
    longest = _json(folder / "sentence_bert_config.json").get("max_seq_length") or own
    if not isinstance(longest, int) or longest < 1:
        raise _not_understood(folder, "sentence_bert_config.json")
    tokenizer.enable_truncation(longest)
    tokenizer.no_padding()
    outputs = [output.name for output in session.get_outputs()]
    modules = _modules(folder)
    return _Model(
        session=session,
        tokenizer=tokenizer,
        inputs=frozenset(each.name for each in session.get_inputs()),
        output="last_hidden_state" if "last_hidden_state" in outputs else outputs[0],
        pooling=_pooling(folder),
        normalises=not modules or "Normalize" in modules,
    )


def _modules(folder: Path) -> frozenset[str]:
    """What a text goes through, by the last part of each name; empty where nothing is said."""
    entries = list(_json(folder / "modules.json").values())
    if not all(isinstance(entry, dict) for entry in entries):
        raise _not_understood(folder, "modules.json")
    found = frozenset(str(entry.get("type")).rpartition(".")[2] for entry in entries)
    # A vector that misses a step is wrong, and nobody would notice.
    if found - _MODULES:
        raise _not_understood(folder, "modules.json")
    return found


def _pooling(folder: Path) -> str:
    """`mean` or `cls`, in whichever of its two forms a folder says it; the mean where nothing is said."""
    said = _json(folder / "1_Pooling" / "config.json")
    modes = {name.removeprefix(_FLAG) for name, chosen in said.items() if name.startswith(_FLAG) and chosen}
    named = said.get("pooling_mode")
    modes |= {str(named)} if named is not None else set()
    known = {_POOLINGS.get(mode, "") for mode in modes} or {"mean"}
    if len(known) != 1 or "" in known:
        raise _not_understood(folder, "1_Pooling/config.json")
    return known.pop()


def _not_understood(folder: Path, file: str) -> Unavailable:
    return Unavailable("embedder", f"{file} of the ONNX model '{folder.name}' asks for what this server cannot do")


def _json(file: Path) -> Mapping[str, Any]:
    """A file's object, a list by place; empty where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Unavailable("embedder", f"{file.name} of the ONNX model cannot be read") from error
    if isinstance(found, list):
        return {str(place): each for place, each in enumerate(found)}
    return found if isinstance(found, dict) else {}
