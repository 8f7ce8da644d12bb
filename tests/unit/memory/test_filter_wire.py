"""Filters on the wire: the bounds of the contract, each broken rule named by its field."""

from __future__ import annotations

from collections.abc import Sized
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from janus_api.memory.v1 import filter_pb2 as pb
from janus_api.memory.v1 import recall_pb2
from janus_kit.errors import InvalidArgument
from janus_kit.validate import Violations
from janus_memory.filters import Field, Filter, OneOf, Range
from janus_memory.wire.filters import filter_of
from janus_memory.wire.reads import recall_query

NOW = datetime(2024, 1, 1, tzinfo=UTC)
KIND = pb.Field(path="kind")
ONE = pb.Value(integer=1)
TRUE = pb.Filter(exists=KIND)


def compare(path: str = "kind", **value: Any) -> pb.Filter:
    return pb.Filter(compare=pb.Comparison(field=pb.Field(path=path), value=pb.Value(**value)))


def one_of(*values: pb.Value) -> pb.Filter:
    return pb.Filter(**{"in": pb.InList(field=KIND, values=values)})


def within(**bounds: pb.Value) -> pb.Filter:
    return pb.Filter(range=pb.Range(field=KIND, **bounds))


def every(*filters: pb.Filter) -> pb.Filter:
    return pb.Filter(all_of=pb.FilterList(filters=filters))


def negated(times: int) -> pb.Filter:
    made = TRUE
    for _ in range(times):
        made = pb.Filter(**{"not": made})
    return made


def decoded(message: pb.Filter) -> Filter | None:
    return recall_query(recall_pb2.RecallRequest(query="x", filter=message), NOW).filter.filter


def broken(message: pb.Filter) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as raised:
        decoded(message)
    return {violation.field: violation.rule for violation in raised.value.violations}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Filter(), "filter"),
        (every(), "filter.all_of.filters"),
        (pb.Filter(any_of=pb.FilterList()), "filter.any_of.filters"),
        (every(*[TRUE] * 65), "filter.all_of.filters"),
        (every(every(*[TRUE] * 64), TRUE), "filter.all_of.filters[1]"),
        (every(TRUE, pb.Filter()), "filter.all_of.filters[1]"),
        (pb.Filter(**{"not": pb.Filter()}), "filter.not"),
        (negated(8), "filter" + ".not" * 8),
        (pb.Filter(exists=pb.Field()), "filter.exists.path"),
        (pb.Filter(compare=pb.Comparison(value=ONE)), "filter.compare.field"),
        (pb.Filter(compare=pb.Comparison(field=KIND)), "filter.compare.value"),
        (compare(), "filter.compare.value"),
        (compare(text="x" * 1_025), "filter.compare.value.text"),
        (compare(text="a\x00b"), "filter.compare.value.text"),
        (compare(number=float("nan")), "filter.compare.value.number"),
        (compare(number=float("-inf")), "filter.compare.value.number"),
        (compare(time={"seconds": 10**12}), "filter.compare.value.time"),
        (compare(time={"nanos": -1}), "filter.compare.value.time"),
        (pb.Filter(contains=pb.Comparison(field=KIND, value=pb.Value())), "filter.contains.value"),
        (one_of(), "filter.in.values"),
        (one_of(*[ONE] * 257), "filter.in.values"),
        (one_of(ONE, pb.Value(text="1")), "filter.in.values[1]"),
        (one_of(ONE, pb.Value(boolean=True)), "filter.in.values[1]"),
        (within(), "filter.range"),
        (within(gte=ONE, lt=pb.Value(text="1")), "filter.range.lt"),
        (within(gte=pb.Value(boolean=True)), "filter.range.gte"),
        (every(TRUE, TRUE, within(gte=pb.Value())), "filter.all_of.filters[2].range.gte"),
    ],
)
def test_a_broken_rule_is_named_by_its_field(message: pb.Filter, field: str) -> None:
    assert list(broken(message)) == [field]


@pytest.mark.parametrize(
    "path",
    [
        "text", "Kind", "kind ", "kind\n", "importance.x", "metadata", "metadata.", "metadata..a", "metadata.a.",
        "metadata.a b", "metadata.a\x00", "metadata.$a", "metadata.a'b", "metadata.a[0]", "metadata.ä", "metadata.a\n",
        "metadata." + "a" * 65, "metadata" + ".a" * 9, "metadata.'; DROP TABLE x", "x" * 1_000_000,
    ],
)  # fmt: skip
def test_another_path_is_refused_and_not_repeated(path: str) -> None:
    found = broken(compare(path, integer=1))
    assert list(found) == ["filter.compare.field.path"]
    assert found == broken(compare("nope", integer=1))


def test_everything_that_is_wrong_is_named_at_once() -> None:
    assert list(broken(every(compare("nope", integer=1), one_of(), within()))) == [
        "filter.all_of.filters[0].compare.field.path",
        "filter.all_of.filters[1].in.values",
        "filter.all_of.filters[2].range",
    ]


def test_the_largest_filters_are_accepted() -> None:
    texts = [pb.Value(text="\U0001f600" * 1_024)] * 256
    assert decoded(one_of(*texts)) == OneOf(Field("kind"), ("\U0001f600" * 1_024,) * 256)
    assert decoded(every(*[TRUE] * 64)) is not None
    assert decoded(negated(7)) is not None
    deepest = "metadata." + ".".join(["a" * 64] * 8)
    assert decoded(compare(deepest, integer=1)) == OneOf(Field("metadata", ("a" * 64,) * 8), (Decimal(1),))


def test_a_tree_is_not_walked_further_than_it_may_go() -> None:
    wide = every(*[every(*[every(*[TRUE] * 64)] * 64)] * 16)
    assert list(broken(wide)) == ["filter.all_of.filters[0].all_of.filters[1].all_of.filters[0]"]


def test_lists_of_nothing_are_not_walked_further_either() -> None:
    class Counting(Violations):
        asked = 0

        def count(self, field: str, items: Sized, *, at_least: int = 0, at_most: int) -> bool:
            self.asked += 1
            return super().count(field, items, at_least=at_least, at_most=at_most)

    check = Counting()
    filter_of(check, "filter", every(*[every(*[every(*[every()] * 64)] * 64)] * 16))
    assert check
    # As many empty lists as there may be conditions, one more, and the lists that they are in.
    assert check.asked <= 65 + 4


def test_integers_and_numbers_are_one_type() -> None:
    assert decoded(one_of(ONE, pb.Value(number=0.1))) == OneOf(Field("kind"), (Decimal(1), Decimal("0.1")))
    largest = 2**63 - 1
    assert decoded(within(gt=pb.Value(integer=largest))) == Range(Field("kind"), ((">", Decimal(largest)),))


def test_times_are_read_to_the_microsecond() -> None:
    when = compare("occurred_at", time={"seconds": 1, "nanos": 1_999})
    assert decoded(when) == OneOf(Field("occurred_at"), (datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=UTC),))


def test_half_a_character_cannot_come_in() -> None:
    with pytest.raises(DecodeError):
        pb.Value.FromString(b"\x0a\x03\xed\xa0\x80")
