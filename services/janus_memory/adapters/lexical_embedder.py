"""`janus/lexical-v1`: the built-in embedder, which needs no model.

Not a language model and not called one: a text's vector is the signed hashing
of its words and of their character 3- and 4-grams, so it finds misspelt and
inflected words that the lexical leg misses, and no synonyms. Repeats count by
their square root. Deterministic to the bit on every platform: hashing is
BLAKE2, arithmetic is IEEE double without transcendental functions. Stored
vectors depend on this file; a change needs another model name.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

from janus_kit.libraries import library
from janus_memory.model import LEXICAL_MODEL
from janus_memory.ports import Purpose
from janus_memory.text import terms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIMENSIONS = 384
_NGRAMS = (3, 4)
# A word counts as much as all of its n-grams together.
_WORD_WEIGHT = 1.0
_NGRAM_WEIGHT = 1.0
_CHARS_AT_A_TIME = 4_000


class LexicalEmbedder:
    """Vectors by hashing. Any number of dimensions; 384 unless a space says otherwise."""

    model = LEXICAL_MODEL

    async def embed(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        """Unit vectors, or zero for a text without words. Never fails."""
        await library("numpy")
        made = []
        waiting = 0
        for text in texts:
            made.append(vector(text, dimensions))
            waiting += len(text)
            if waiting > _CHARS_AT_A_TIME:
                # Others on the event loop take their turn every few milliseconds.
                waiting = 0
                await asyncio.sleep(0)
        return made


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """The vector of a text: of length 1, or zero for a text without words."""
    import numpy as np

    places, shares = [], []
    for word, count in sorted(Counter(terms(text)).items()):
        of_word = _features(word, dimensions)
        places.append(of_word.places)
        shares.append(of_word.shares if count == 1 else sqrt(count) * of_word.shares)
    if not places:
        return [0.0] * dimensions
    # One after the other, in this order, so that every platform rounds the same:
    # neither of them adds in pairs, as other sums of arrays do.
    sums = np.bincount(np.concatenate(places), np.concatenate(shares), dimensions)
    norm = sqrt(np.add.accumulate(sums * sums)[-1])
    found: list[float] = (sums / norm if norm else sums).tolist()
    return found


class _Features(NamedTuple):
    """Where a word's features go, and with what sign and weight."""

    places: "NDArray[np.int64]"
    shares: "NDArray[np.float64]"


@lru_cache(maxsize=32_768)
def _features(word: str, dimensions: int) -> _Features:
    import numpy as np

    marked = f"^{word}$"
    grams = [marked[i : i + n] for n in _NGRAMS for i in range(len(marked) - n + 1)]
    found = [_placed(f"w {word}", dimensions, _WORD_WEIGHT)]
    if grams:
        share = _NGRAM_WEIGHT / sqrt(len(grams))
        found.extend(_placed(f"g {gram}", dimensions, share) for gram in grams)
    places, shares = zip(*found, strict=True)
    return _Features(np.array(places, np.int64), np.array(shares, np.float64))


def _placed(feature: str, dimensions: int, weight: float) -> tuple[int, float]:
    digest = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return (number >> 1) % dimensions, weight if number & 1 else -weight
