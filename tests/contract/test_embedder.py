"""What every embedder promises, and the built-in one in particular."""

import hashlib
import math
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_memory.adapters.lexical_embedder import LexicalEmbedder, vector
from janus_memory.ports import Purpose
from janus_memory.text import terms

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


def by_hand(text: str, dimensions: int) -> list[float]:
    """The vector by the plainest arithmetic, one number after the other."""
    sums = [0.0] * dimensions
    for word, count in sorted(Counter(terms(text)).items()):
        marked = f"^{word}$"
        grams = [marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1)]
        features = [(f"w {word}", 1.0)]
        features += [(f"g {gram}", 1.0 / math.sqrt(len(grams))) for gram in grams]
        for feature, share in features:
            digest = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            number = int.from_bytes(digest, "little")
            sums[(number >> 1) % dimensions] += math.sqrt(count) * (share if number & 1 else -share)
    total = 0.0
    for value in sums:
        total += value * value
    return [value / math.sqrt(total) for value in sums] if total else sums


@given(st.text(max_size=200) | st.lists(st.sampled_from(["red", "bridge", "painted", "é"])).map(" ".join))
def test_it_is_what_plain_arithmetic_gives_to_the_bit(text: str) -> None:
    for dimensions in (1, 16, 384):
        assert vector(text, dimensions) == by_hand(text, dimensions)


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
