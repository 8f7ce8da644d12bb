"""Names of tools and ids of calls as providers take them: one for one, and always the same."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from janus_inference.adapters.tool_names import _FITS, _given_names
from janus_inference.dialects.call_ids import told_apart
from janus_inference.model import Message, Prompt, Role, Text, ToolCall, ToolDefinition, ToolResult

NAMES = st.text("ab._-", min_size=1, max_size=4)


def prompt(*tools: str, called: tuple[str, ...] = ()) -> Prompt:
    calls = tuple(ToolCall(f"c{place}", name, "{}") for place, name in enumerate(called))
    return Prompt((Message(Role.ASSISTANT, calls),), tools=tuple(map(ToolDefinition, tools)))


def test_a_name_that_fits_is_left_alone() -> None:
    assert _given_names(prompt("weather", "get_time-2")) == {}


def test_a_dot_becomes_an_underscore() -> None:
    assert _given_names(prompt("memory.search")) == {"memory.search": "memory_search"}


def test_a_name_that_is_taken_is_not_given_to_another() -> None:
    given_names = _given_names(prompt("a_b", "a.b"))
    assert given_names.keys() == {"a.b"}
    assert given_names["a.b"].startswith("a_b_")


def test_a_tool_that_is_no_longer_offered_keeps_its_name_in_the_history() -> None:
    assert _given_names(prompt(called=("time.now",))) == {"time.now": "time_now"}


@given(st.lists(NAMES, unique=True, max_size=8), st.lists(NAMES, unique=True, max_size=8))
def test_every_name_fits_and_no_two_tools_share_one(tools: list[str], called: list[str]) -> None:
    given_names = _given_names(prompt(*tools, called=tuple(called)))
    asked = [given_names.get(name, name) for name in dict.fromkeys([*tools, *called])]
    assert all(map(_FITS.fullmatch, asked))
    assert len(set(asked)) == len(asked)


def turn(*ids: str) -> list[Message]:
    calls = Message(Role.ASSISTANT, tuple(ToolCall(each, "weather", "{}") for each in ids))
    return [calls, Message(Role.TOOL, tuple(ToolResult(each, (Text("sunny"),)) for each in ids))]


def ids_of(messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    parts = [part for message in messages for part in message.parts]
    calls = [part.call_id for part in parts if isinstance(part, ToolCall)]
    return calls, [part.call_id for part in parts if isinstance(part, ToolResult)]


def test_ids_that_differ_are_left_alone() -> None:
    messages = [*turn("a", "b"), *turn("c")]
    assert told_apart(messages) is messages


@given(st.lists(st.lists(st.sampled_from(["a", "a_1", "b", "b_2"]), min_size=1, max_size=4), max_size=5))
def test_an_id_that_comes_again_is_another_one_and_its_result_has_it_too(turns: list[list[str]]) -> None:
    messages = [message for ids in turns for message in turn(*ids)]
    calls, results = ids_of(told_apart(messages))
    assert len(set(calls)) == len(calls)
    assert results == calls


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), min_size=2, max_size=5))
def test_what_a_turn_adds_changes_no_id_before_it(turns: list[list[str]]) -> None:
    """A provider's prompt cache holds on to the beginning of a conversation."""
    messages = [message for ids in turns for message in turn(*ids)]
    before, after = ids_of(told_apart(messages[:-2])), ids_of(told_apart(messages))
    assert (after[0][: len(before[0])], after[1][: len(before[1])]) == before


def test_a_call_without_a_result_gives_its_id_to_no_later_result() -> None:
    calls, results = ids_of(told_apart([turn("a")[0], *turn("a")]))
    assert results == calls[1:]
