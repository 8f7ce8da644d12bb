"""What every embedder promises, and the built-in one in particular."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_memory.adapters.lexical_embedder import LexicalEmbedder, vector
from janus_memory.ports import Purpose

# `vector("We painted the bridge", 16)`, to six digits.
ANCHOR = [
    -0.365148,
    0.0,
    0.0,
    0.0,
    0.547723,
    0.365148,
    0.0,
    0.0,
    0.182574,
    0.182574,
    0.0,
    0.547723,
    0.0,
    -0.182574,
    0.0,
    0.182574,
]


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


async def test_a_vector_a_text_in_order() -> None:
    embedder = LexicalEmbedder()
    texts = ["a red bridge", "", "東京"]
    vectors = await embedder.embed(texts, 384, Purpose.DOCUMENT)
    assert vectors == [(await embedder.embed([text], 384, Purpose.DOCUMENT))[0] for text in texts]


@given(st.text(max_size=200), st.sampled_from([16, 64, 384]))
def test_vectors_have_length_one_or_are_zero(text: str, dimensions: int) -> None:
    made = vector(text, dimensions)
    assert len(made) == dimensions
    norm = math.sqrt(cosine(made, made))
    assert norm == pytest.approx(1.0) or norm == 0


def test_misspelt_and_inflected_words_are_near() -> None:
    query = vector("painting the bridge")
    assert cosine(query, vector("she painted a brigde")) > 0.3
    assert cosine(query, vector("they discussed quarterly taxes")) < 0.15


def test_word_order_and_stop_words_do_not_matter() -> None:
    assert vector("the bridge is red") == vector("red bridge")


def test_another_process_makes_the_same_vector_to_the_bit() -> None:
    code = (
        "from janus_memory.adapters.lexical_embedder import vector;"
        "print([x.hex() for x in vector('Grüße aus 東京, we painted the bridge twice, twice')])"
    )
    seeded = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    here = vector("Grüße aus 東京, we painted the bridge twice, twice")
    assert seeded[0] == seeded[1] == f"{[x.hex() for x in here]}\n"


def test_stored_vectors_stay_comparable() -> None:
    # A change of these numbers needs another model name: spaces hold vectors made with them.
    made = vector("We painted the bridge", 16)
    assert [round(value, 6) for value in made] == ANCHOR
