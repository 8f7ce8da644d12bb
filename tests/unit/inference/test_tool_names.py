"""Names of tools as providers take them: one for one, and always the same."""

from hypothesis import given
from hypothesis import strategies as st

from janus_inference.adapters.tool_names import _FITS, _given_names
from janus_inference.model import Message, Prompt, Role, ToolCall, ToolDefinition

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
