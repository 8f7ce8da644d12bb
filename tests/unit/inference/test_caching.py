"""The response cache: what counts as the same question, what is kept, and for how long."""

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest
from prometheus_client import REGISTRY

from janus_inference import model
from janus_inference.caching import KEPT_S, AnswerCache, digest
from janus_inference.events import (
    Cost,
    Event,
    Failed,
    Finished,
    FinishReason,
    RouteChanged,
    Started,
    TextDelta,
    Timings,
    ToolCallCompleted,
    Usage,
    UsageUpdated,
)
from janus_inference.model import CachePolicy, Caller, Message, Prompt, Role, Text
from janus_inference.stored import ProtobufEvents
from janus_kit.errors import Unavailable

ANNA = Caller("anna", "a")
BOB = Caller("bob", "b")
TARGETS = ("upstream/fake",)
USED = Usage(10, 0, 0, 5)


class Shelf:
    """Answers in memory; ``away`` makes it fail as Redis does."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], bytes] = {}
        self.kept_s: list[float] = []
        self.away = False

    async def get(self, tenant: str, digest: str) -> bytes | None:
        if self.away:
            raise Unavailable("redis")
        return self.held.get((tenant, digest))

    async def put(self, tenant: str, digest: str, answer: bytes, keep_s: float) -> None:
        if self.away:
            raise Unavailable("redis")
        self.held[tenant, digest] = answer
        self.kept_s.append(keep_s)


class Watch:
    """A clock that is set."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


class Setup:
    def __init__(self, most_bytes: int = 10_000) -> None:
        self.shelf, self.watch = Shelf(), Watch()
        self.cache = AnswerCache(self.shelf, ProtobufEvents(), most_bytes=most_bytes, clock=self.watch)


@pytest.fixture
def setup() -> Setup:
    return Setup()


def prompt(text: str = "hello", **more: Any) -> Prompt:
    more.setdefault("cache", CachePolicy(read=True, write=True))
    return Prompt((Message(Role.USER, (Text(text),)),), model="fake", **more)


def answer(*between: Event, reason: FinishReason = FinishReason.STOP) -> list[Event]:
    middle = between or (TextDelta(0, "hi"),)
    finished = Finished(reason, "stop", USED, Timings(0.1, 0.2, 0.01), "resp_1", Cost(7, "v1"))
    return [Started("gen_1", "upstream", "fake", 1), *middle, finished]


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("janus_inference_cache_total", {"outcome": outcome}) or 0.0


async def test_a_stored_answer_is_read_back_and_used_nothing(setup: Setup) -> None:
    await setup.cache.put(ANNA, prompt(), TARGETS, answer())
    found = await setup.cache.get(ANNA, prompt(), TARGETS)
    assert found == (
        Started("gen_1", "upstream", "fake", 1),
        TextDelta(0, "hi"),
        Finished(FinishReason.STOP, "stop", Usage(), Timings(0, 0, 0), "resp_1", None, from_cache=True),
    )


async def test_what_an_answer_cost_and_how_it_was_routed_is_not_kept(setup: Setup) -> None:
    events = answer(
        RouteChanged("upstream/fake", "other/model", "OVERLOADED", 2), UsageUpdated(USED), TextDelta(0, "x")
    )
    await setup.cache.put(ANNA, prompt(), TARGETS, events)
    found = await setup.cache.get(ANNA, prompt(), TARGETS)
    assert found is not None
    assert found[:2] == (Started("gen_1", "other", "model", 1), TextDelta(0, "x"))
    assert len(found) == 3


async def test_another_tenant_never_gets_it(setup: Setup) -> None:
    await setup.cache.put(ANNA, prompt(), TARGETS, answer())
    assert await setup.cache.get(BOB, prompt(), TARGETS) is None
    # Not even from a store that mixes its tenants up.
    setup.shelf.held = {("bob", key): data for (_, key), data in setup.shelf.held.items()}
    assert await setup.cache.get(BOB, prompt(), TARGETS) is None


async def test_another_caller_of_the_tenant_gets_it(setup: Setup) -> None:
    await setup.cache.put(ANNA, prompt(), TARGETS, answer())
    assert await setup.cache.get(Caller("anna", "somebody else"), prompt(), TARGETS) is not None


@pytest.mark.parametrize(
    ("policy", "reads", "writes"),
    [
        (CachePolicy(), False, False),
        (CachePolicy(read=True), True, False),
        (CachePolicy(write=True), False, True),
        (CachePolicy(read=True, write=True), True, True),
    ],
)
async def test_the_mode_says_what_is_done(policy: CachePolicy, reads: bool, writes: bool) -> None:
    fresh = Setup()
    await fresh.cache.put(ANNA, prompt(cache=policy), TARGETS, answer())
    assert bool(fresh.shelf.held) is writes
    full = Setup()
    await full.cache.put(ANNA, prompt(), TARGETS, answer())
    assert (await full.cache.get(ANNA, prompt(cache=policy), TARGETS) is not None) is reads


@pytest.mark.parametrize(
    ("max_age", "age", "hits"),
    [
        (None, 86_400, True),
        (None, 86_401, False),
        (60.0, 60, True),
        (60.0, 61, False),
        (0.0, 1, False),
        (1e6, 9e5, True),
    ],
)
async def test_an_answer_is_as_old_as_the_prompt_allows(
    setup: Setup, max_age: float | None, age: float, hits: bool
) -> None:
    await setup.cache.put(ANNA, prompt(), TARGETS, answer())
    setup.watch.time += timedelta(seconds=age)
    asked = prompt(cache=CachePolicy(read=True, max_age=max_age))
    assert (await setup.cache.get(ANNA, asked, TARGETS) is not None) is hits


async def test_no_answer_is_kept_for_more_than_30_days(setup: Setup) -> None:
    await setup.cache.put(ANNA, prompt(cache=CachePolicy(write=True, max_age=1e9)), TARGETS, answer())
    assert setup.shelf.kept_s == [KEPT_S] == [30 * 86_400]


@pytest.mark.parametrize("reason", list(FinishReason))
async def test_only_whole_answers_are_kept(setup: Setup, reason: FinishReason) -> None:
    await setup.cache.put(ANNA, prompt(), TARGETS, answer(reason=reason))
    kept = reason in (FinishReason.STOP, FinishReason.TOOL_CALLS, FinishReason.STOP_SEQUENCE)
    assert bool(setup.shelf.held) is kept


@pytest.mark.parametrize(
    "events",
    [
        [],
        answer()[:-1],
        answer()[1:],
        [*answer()[:-1], Failed(Unavailable("x"), True, True, Usage())],
        answer(ToolCallCompleted(0, model.ToolCall("c", "f", "{"), valid_json=False, valid_schema=False)),
        answer(ToolCallCompleted(0, model.ToolCall("c", "f", "{}"), valid_schema=False)),
        [*answer()[:-1], replace(answer()[-1], from_cache=True)],
    ],
    ids=["nothing", "cut", "headless", "failed", "broken JSON", "wrong arguments", "from the cache"],
)
async def test_what_is_not_a_good_answer_is_not_kept(setup: Setup, events: Sequence[Event]) -> None:
    await setup.cache.put(ANNA, prompt(), TARGETS, events)
    assert not setup.shelf.held


async def test_an_answer_that_is_too_large_is_not_kept() -> None:
    setup, before = Setup(most_bytes=1_000), counted("too_large")
    await setup.cache.put(ANNA, prompt(), TARGETS, answer(TextDelta(0, "x" * 1_000)))
    assert not setup.shelf.held
    assert counted("too_large") == before + 1


async def test_without_the_store_every_question_is_a_miss_and_nothing_fails(setup: Setup) -> None:
    before = counted("unavailable")
    await setup.cache.put(ANNA, prompt(), TARGETS, answer())
    setup.shelf.away = True
    assert await setup.cache.get(ANNA, prompt(), TARGETS) is None
    await setup.cache.put(ANNA, prompt(), TARGETS, answer())
    assert counted("unavailable") == before + 2


@pytest.mark.parametrize("data", [b"", b"short", b"\0" * 8, b"\0" * 8 + b"\x09rubbish", b"\0" * 8 + b"\x01"])
async def test_what_another_version_stored_is_a_miss(setup: Setup, data: bytes) -> None:
    setup.watch.time = datetime(1970, 1, 1, tzinfo=UTC)
    await setup.cache.put(ANNA, prompt(), TARGETS, answer())
    (place,) = setup.shelf.held
    setup.shelf.held[place] = data
    assert await setup.cache.get(ANNA, prompt(), TARGETS) is None


async def test_uses_are_counted(setup: Setup) -> None:
    before = {outcome: counted(outcome) for outcome in ("hit", "miss", "stored")}
    await setup.cache.get(ANNA, prompt(), TARGETS)
    await setup.cache.put(ANNA, prompt(), TARGETS, answer())
    await setup.cache.get(ANNA, prompt(), TARGETS)
    await setup.cache.get(ANNA, prompt(cache=CachePolicy()), TARGETS)
    assert {outcome: counted(outcome) - count for outcome, count in before.items()} == {
        "hit": 1,
        "miss": 1,
        "stored": 1,
    }


# One other value for each field of a prompt that can change the answer.
_OTHERWISE: dict[str, Any] = {
    "messages": (Message(Role.USER, (Text("hallo"),)),),
    "system": "be brief",
    "tools": (model.ToolDefinition("weather"),),
    "tool_choice": model.ToolChoice(model.ToolChoiceMode.REQUIRED),
    "parallel_tool_calls": False,
    "response_format": model.JsonFormat(),
    "sampling": model.Sampling(temperature=0.5),
    "stop": ("\n",),
    "max_output_tokens": 10,
    "reasoning": model.ReasoningOptions(effort=model.Effort.LOW),
    "provider_options_json": '{"a": 1}',
}
# And for each that cannot.
_REGARDLESS: dict[str, Any] = {
    "model": "alias",
    "timeouts": model.Timeouts(total=3),
    "routing": model.Routing(fallbacks=("a/b",), hedge_after=1),
    "cache": CachePolicy(max_age=4),
    "labels": MappingProxyType({"team": "blue"}),
    "resumable": True,
    "linger": 5.0,
    "request_id": "r1",
}


def test_every_field_of_a_prompt_is_decided_about() -> None:
    assert {field.name for field in fields(Prompt)} == _OTHERWISE.keys() | _REGARDLESS.keys()


def test_whatever_can_change_the_answer_makes_another_question() -> None:
    made = [prompt(), *(replace(prompt(), **{name: value}) for name, value in _OTHERWISE.items())]
    found = [digest("t", each, TARGETS) for each in made]
    found += [
        digest("t", prompt(), ("a/b",)),
        digest("t", prompt(), ("upstream/fake", "a/b")),
        digest("u", prompt(), TARGETS),
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", list(_REGARDLESS))
def test_whatever_cannot_leaves_it_the_same(name: str) -> None:
    other = replace(prompt(), **{name: _REGARDLESS[name]})
    assert digest("t", other, TARGETS) == digest("t", prompt(), TARGETS)


def test_ids_of_messages_and_cache_marks_leave_it_the_same() -> None:
    marked = replace(prompt(), messages=(Message(Role.USER, (Text("hello", cache_breakpoint=True),), id="m1"),))
    assert digest("t", marked, TARGETS) == digest("t", prompt(), TARGETS)


def test_the_same_text_cut_in_other_places_is_another_question() -> None:
    def parts(*texts: str) -> str:
        return digest("t", Prompt((Message(Role.USER, tuple(map(Text, texts))),)), TARGETS)

    assert len({parts("ab", "c"), parts("a", "bc"), parts("abc"), parts("ab", "c", "")}) == 4


def test_a_digest_says_nothing_of_the_words() -> None:
    assert len(digest("t", prompt("secret"), TARGETS)) == 64
