"""Ids in order, ids that are accepted, and rules that name every field at once."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_api.common.v1 import scope_pb2
from janus_kit import ids
from janus_kit.auth.identity import ALL_SCOPES
from janus_kit.errors import InvalidArgument
from janus_kit.validate import Violations


def test_ids_are_acceptable_ordered_and_unique():
    made = [ids.new_id("msg") for _ in range(5000)]
    assert made == sorted(set(made))
    assert all(re.fullmatch(r"msg_[0-9a-hjkmnp-tv-z]{26}", each) for each in made)
    assert all(ids.is_id(each) for each in made)


def test_ids_keep_their_order_when_the_clock_steps_back(monkeypatch):
    first = ids.new_id("run")
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    assert first < ids.new_id("run") < ids.new_id("run")


def test_an_id_says_in_crockfords_digits_when_it_was_made(monkeypatch):
    monkeypatch.setattr(ids, "_sequence", ids._Sequence())
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    number = 0
    for digit in ids.new_id("msg").removeprefix("msg_"):
        number = number * 32 + "0123456789abcdefghjkmnpqrstvwxyz".index(digit)
    assert number >> 80 == 1_700_000_000_123


@pytest.mark.parametrize("text", ["a", "0", "user:1", "a.b-c_d:e", "A" * 128])
def test_an_id_is_accepted(text):
    assert ids.require_id("id", text) == text


@pytest.mark.parametrize(
    "text",
    ["", "A" * 129, "-a", ".a", "a b", "a/b", "a\n", "a\x00", "é", "e\u0301", "\u202ea", "../a", "٣", "a\ud800"],
)
def test_what_is_no_id_is_refused_naming_the_field(text):
    with pytest.raises(InvalidArgument) as raised:
        ids.require_id("thread_id", text)
    assert raised.value.violations[0].field == "thread_id"
    assert text == "" or text not in raised.value.message


@given(st.text(max_size=200))
def test_an_id_is_ascii_and_bounded_whatever_is_offered(text):
    if ids.is_id(text):
        assert text.isascii()
        assert 1 <= len(text) <= 128
        assert not set(text) & set(" /\\\n\r\t\x00{}")


def test_every_violation_is_reported_together():
    check = Violations()
    check.id("thread_id", "a b")
    check.id("parent_id", "", optional=True)
    check.length("text", "", at_least=1, at_most=10)
    check.length("name", "a\x00b", at_most=10)
    check.size("data", b"12345", at_most=4)
    check.count("messages", [], at_least=1, at_most=100)
    check.between("temperature", float("nan"), 0, 2)
    check.between("top_p", 0.5, 0, 1)
    check.one_of("kind", "x", {"fact", "event"})
    check.specified("role", 0, [0, 1, 2])
    check.specified("role", 9, [0, 1, 2])
    check.present("message", False)
    with pytest.raises(InvalidArgument) as raised:
        check.done()
    assert [violation.field for violation in raised.value.violations] == [
        "thread_id", "text", "name", "data", "messages", "temperature", "kind", "role", "role", "message",
    ]  # fmt: skip


def test_bounds_are_told_in_full():
    check = Violations()
    check.between("max_tokens", -1, 0, 1_000_000)
    check.between("importance", 1.5, 0, 0.5)
    assert [each.rule for each in check.found] == ["must be between 0 and 1000000", "must be between 0 and 0.5"]


def test_nothing_wrong_means_nothing_raised():
    check = Violations()
    assert check.between("temperature", 0.0, 0, 2)
    check.done()
    assert not check


def test_a_thousand_mistakes_make_a_short_list():
    check = Violations()
    for number in range(1000):
        check.id(f"ids[{number}]", "")
    assert len(check.found) == 50


def test_the_scopes_are_the_contracts(request):
    proto = (request.config.rootpath / "protos/janus/common/v1/scope.proto").read_text()
    assert set(re.findall(r"//   `([a-z.]+)`", proto)) == ALL_SCOPES
    assert scope_pb2.scope.number == 50101
