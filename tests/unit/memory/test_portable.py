"""A record that is exported is the same when it is decoded again."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import space_pb2
from janus_memory.importing import ImportedTurn
from janus_memory.model import Cause, Change, Kind, Memory, MemoryVersion, Scope, Turn
from janus_memory.wire.content import facts
from janus_memory.wire.portable import ImportStream, encoded

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True)
_TIMES = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 30)).map(lambda when: when.replace(tzinfo=UTC))  # noqa: DTZ001
_METADATA = st.just("") | st.dictionaries(_TEXT, _TEXT | st.integers() | st.none(), max_size=3).map(json.dumps)


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    message = content.Message(role=draw(st.integers(1, 4)), id=draw(_IDS), name=draw(_TEXT))
    texts = draw(st.lists(_TEXT, min_size=1, max_size=3))
    if message.role == content.ROLE_TOOL:
        result = content.ToolResult(call_id=draw(_IDS), parts=[content.Part(text=text) for text in texts])
        message.parts.add().tool_result.CopyFrom(result)
    else:
        message.parts.extend(content.Part(text=text) for text in texts)
        message.parts.add().opaque.CopyFrom(content.OpaquePart(issuer="x", data=draw(st.binary(max_size=9))))
    if said := draw(st.none() | _TIMES):
        message.created_at.FromDatetime(said)
    about = facts(message)
    recorded = draw(_TIMES)
    if said == recorded:
        message.ClearField("created_at")
    return Turn(
        id=message.id,
        scope=Scope("s", draw(st.just("") | _IDS), draw(st.just("") | _IDS), draw(_IDS)),
        speaker=message.name,
        text=about.text,
        content=message.SerializeToString(deterministic=True),
        tokens=about.tokens,
        calls=about.calls,
        results=about.results,
        position=draw(st.integers(1, 2**63 - 1)),
        session=0,
        occurred_at=draw(_TIMES),
        recorded_at=recorded,
        metadata_json=draw(_METADATA),
    )


@st.composite
def versions(draw: st.DrawFn) -> MemoryVersion:
    begins = draw(st.none() | _TIMES.filter(lambda when: when.year < 9999))
    superseded = draw(st.none() | _TIMES)
    kind = draw(st.sampled_from(["document", "client"]))
    source = {kind: draw(_TEXT), "quote": draw(_TEXT), "origin": draw(st.integers(0, 4))}
    memory = Memory(
        id=draw(_IDS),
        version=draw(st.integers(1, 2**63 - 1)),
        kind=draw(st.sampled_from([kind for kind in Kind if kind is not Kind.TURN])),
        text=draw(_TEXT.filter(str.strip)),
        scope=Scope("s", draw(st.just("") | _IDS), draw(st.just("") | _IDS), draw(st.just("") | _IDS)),
        predicate=draw(st.just("") | _TEXT),
        provenance_json=json.dumps([source]),
        valid_from=begins,
        valid_to=begins + timedelta(microseconds=1) if begins else None,
        expires_at=draw(st.none() | _TIMES),
        importance=draw(st.floats(0, 1)),
        metadata_json=draw(_METADATA),
        recorded_at=draw(_TIMES),
        superseded_at=superseded,
    )
    # Who imports a current version is who changed it.
    cause, change = Cause("importer"), Change.IMPORTED
    if superseded:
        cause = Cause(draw(_TEXT), draw(st.just("") | _IDS), draw(_TEXT))
        change = draw(st.sampled_from(list(Change)))
    # No embedding, or one of a length that indexes can compare.
    numbers = draw(
        st.one_of(st.just([]), st.lists(st.floats(-100, 100, width=32), min_size=1).map(lambda n: [1.0, *n]))
    )
    return MemoryVersion(memory, change, cause, embedding=tuple(numbers))


def stream(space: str = "s") -> ImportStream:
    async def messages() -> AsyncIterator[pb.ImportRequest]:
        yield pb.ImportRequest(config=pb.ImportConfig())
        yield pb.ImportRequest(space=space_pb2.Space(name=space))
        yield pb.ImportRequest(completed=pb.ExportCompleted())

    opened = ImportStream(messages(), "importer")

    async def read() -> None:
        await opened.config()
        async for _ in opened.records():
            pass

    asyncio.run(read())
    return opened


@given(turns())
def test_a_turn_survives(turn: Turn) -> None:
    decoded = stream().decode(encoded(turn), 1, "s")
    assert isinstance(decoded, ImportedTurn)
    assert decoded.turn == turn


@given(versions())
def test_a_version_survives(version: MemoryVersion) -> None:
    decoded = stream().decode(encoded(version), 1, "s")
    assert isinstance(decoded, MemoryVersion)
    assert replace(decoded, digest=b"") == version


@given(versions())
def test_a_purged_version_survives_as_nothing_but_itself(version: MemoryVersion) -> None:
    recorded = version.memory.recorded_at
    bare = replace(version.memory, text="", superseded_at=recorded)
    decoded = stream().decode(encoded(replace(version, memory=bare)), 1, "t")
    assert isinstance(decoded, MemoryVersion)
    assert decoded.memory == replace(bare, scope=replace(bare.scope, space="t"))
    assert decoded.purged
