"""Made-up memories and turns for `make bench-memory`, put into Postgres as the service would have."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import numpy as np
from numpy.typing import NDArray

from janus_memory.text import bag, date_terms, lexeme, terms

DIMENSIONS = 384
_CLUSTERS = 64
_VOCABULARY = 8_000
_BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
_TURNS_A_THREAD = 200

# Spaces come first: their numbers are in the lexemes. Everything else is sent once, as arrays, and
# spread over the tables by the database; only vectors are worth a format of their own.
_STAGE = """CREATE TEMP TABLE staged (tenant text, space_no bigint, unit bigint, kind smallint, id text, thread text,
    position bigint, occurred_at timestamptz, text text, terms text, bag bytea,
    alone real[], before real[]) ON COMMIT DROP"""
_SPREAD = (
    """INSERT INTO memory.unit (tenant, space_no, unit, kind, record_id, version, subject, agent, thread, position,
           session, speaker, occurred_at, importance, terms, bag)
       OVERRIDING SYSTEM VALUE
       SELECT tenant, space_no, unit, kind, id, 1, '', '', thread, position, CASE kind WHEN 1 THEN 1 ELSE 0 END, '',
              occurred_at, 0.5, array_to_tsvector(string_to_array(terms, ' ')), bag FROM staged""",
    """INSERT INTO memory.turn (tenant, space_no, thread, position, id, subject, agent, role, speaker, content, text,
           tokens, session, occurred_at, digest)
       SELECT tenant, space_no, thread, position, id, '', '', 2, '', '', text, 20, 1, occurred_at, ''
       FROM staged WHERE kind = 1""",
    """INSERT INTO memory.memory (tenant, id, version, space_no, kind, text, subject, agent, thread, predicate,
           importance, digest, changed_by)
       SELECT tenant, id, 1, space_no, kind, text, '', '', '', '', 0.5, id::bytea, 'bench'
           FROM staged WHERE kind > 1""",
    """INSERT INTO memory.vector (tenant, space_no, view, unit, version, kind, subject, agent, thread, recorded_at,
           dimensions, embedding)
       SELECT tenant, space_no, view, unit, 1, kind, '', '', thread, now(), array_length(alone, 1),
              CASE view WHEN 2 THEN before ELSE alone END::vector
       FROM staged, generate_series(0, 2) AS view WHERE (view = 0) = (kind > 1)""",
    """INSERT INTO memory.lexicon (tenant, space_no, term, units)
       SELECT tenant, space_no, split_part(lexeme, ':', 2), count(*)
       FROM staged, unnest(string_to_array(terms, ' ')) AS lexeme GROUP BY 1, 2, 3""",
    """INSERT INTO memory.statistics (tenant, space_no, units, tokens)
       SELECT tenant, space_no, count(*), sum(octet_length(bag) / 4 + CASE kind WHEN 1 THEN 3 ELSE 0 END)
       FROM staged GROUP BY 1, 2""",
    "SELECT setval(pg_get_serial_sequence('memory.unit', 'unit'), (SELECT max(unit) FROM memory.unit))",
)


@dataclass(frozen=True)
class Question:
    """What a recall asks: words, and a vector near those of some memories."""

    text: str
    vector: tuple[float, ...]


class Corpus:
    """Texts of words as unequally frequent as those of a language; vectors in clusters. Of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._centres = _unit(self._random.standard_normal((_CLUSTERS, DIMENSIONS)))
        letters = self._random.integers(97, 123, (_VOCABULARY, 7), np.uint8)
        self._words = [bytes(word[: 4 + i % 4]).decode() for i, word in enumerate(letters)]
        shares = 1 / (np.arange(_VOCABULARY) + 10)
        self._shares = shares / shares.sum()

    def texts(self, size: int) -> list[str]:
        """Of 8 to 24 words."""
        lengths = self._random.integers(8, 25, size)
        words = self._random.choice(_VOCABULARY, int(lengths.sum()), p=self._shares)
        ends = np.cumsum(lengths)
        return [
            " ".join(self._words[word] for word in words[end - length : end])
            for length, end in zip(lengths, ends, strict=True)
        ]

    def vectors(self, size: int) -> NDArray[np.float32]:
        """Of length 1."""
        near = self._centres[self._random.integers(0, _CLUSTERS, size)]
        return _unit(near + 0.05 * self._random.standard_normal((size, DIMENSIONS))).astype(np.float32)

    def questions(self, size: int) -> list[Question]:
        """Of 4 to 7 words."""
        texts = (" ".join(text.split()[: 4 + i % 4]) for i, text in enumerate(self.texts(size)))
        return [Question(text, tuple(vector.tolist())) for text, vector in zip(texts, self.vectors(size), strict=True)]


async def fill(connection: asyncpg.Connection, corpus: Corpus, tenants: list[str], each: int, *, turns: bool) -> None:
    """Give every tenant a default space of so many memories, or turns in threads of 200. One transaction."""
    async with connection.transaction():
        await connection.execute(_STAGE)
        unit = await connection.fetchval("SELECT coalesce(max(unit), 0) FROM memory.unit")
        for tenant in tenants:
            space_no = await connection.fetchval(
                """INSERT INTO memory.space (tenant, name, backend, model, dimensions)
                   VALUES ($1, 'default', 1, 'janus/lexical-v1', $2) RETURNING number""",
                tenant, DIMENSIONS,
            )  # fmt: skip
            rows = [
                (tenant, space_no, unit + place + 1, *record)
                for place, record in enumerate(_records(corpus, tenant, space_no, each, turns))
            ]
            unit += each
            await connection.copy_records_to_table("staged", records=rows)
        for statement in _SPREAD:
            await connection.execute(statement)


def _records(corpus: Corpus, tenant: str, space_no: int, size: int, turns: bool) -> list[tuple[Any, ...]]:
    alone = corpus.vectors(size)
    before = corpus.vectors(size) if turns else alone
    found = []
    for place, text in enumerate(corpus.texts(size)):
        thread, position = (f"talk-{place // _TURNS_A_THREAD}", place % _TURNS_A_THREAD + 1) if turns else ("", 0)
        when = _BEGAN + timedelta(minutes=place)
        own = terms(text)
        dated = [*own, *date_terms(when)] if turns else own
        lexemes = " ".join(lexeme(space_no, term) for term in dict.fromkeys(dated))
        found.append(
            (
                1 if turns else 2, f"{tenant}-{place}", thread, position, when, text, lexemes, bag(own),
                alone[place].tolist(), before[place].tolist(),
            )
        )  # fmt: skip
    return found


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]
