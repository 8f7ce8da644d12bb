"""Server-sent events survive whatever the network does to them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference.dialects.sse import EventTooLarge, SseSplitter

STREAM = (
    "\ufeffdata: first\n\n"
    ": a comment\n"
    'event: delta\ndata: {"text": "zwölf Žluťoučký 🐎"}\n\n'
    "data:no space\r\n\r\n"
    "id: 7\rdata: one\rdata: two\r\r"
    "event: empty\n\n"
    "retry: 10\ndata: last\n\n"
).encode()
EVENTS = [
    (b"", b"first"),
    (b"delta", '{"text": "zwölf Žluťoučký 🐎"}'.encode()),
    (b"", b"no space"),
    (b"", b"one\ntwo"),
    (b"", b"last"),
]


def split(chunks: list[bytes]) -> list[tuple[bytes, bytes]]:
    splitter = SseSplitter()
    return [event for chunk in chunks for event in splitter.feed(chunk)]


def test_all_line_ends_comments_and_names_are_understood() -> None:
    assert split([STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_a_stream_means_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    assert split([STREAM[a:b] for a, b in itertools.pairwise(places)]) == EVENTS


def test_a_stream_means_the_same_byte_by_byte() -> None:
    assert split([bytes([byte]) for byte in STREAM]) == EVENTS


def test_an_event_without_its_blank_line_is_kept_for_the_end() -> None:
    splitter = SseSplitter()
    assert list(splitter.feed(b"data: a\n\ndata: b")) == [(b"", b"a")]
    assert list(splitter.close()) == [(b"", b"b")]


@pytest.mark.parametrize("chunk", [b"data: " + b"x" * 64, b"data: 123456\n" * 6])
def test_an_event_beyond_the_bound_is_refused(chunk: bytes) -> None:
    splitter = SseSplitter(max_pending=32)
    with pytest.raises(EventTooLarge):
        list(splitter.feed(chunk))
