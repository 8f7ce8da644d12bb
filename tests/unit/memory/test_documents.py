"""Documents are cut where a reader would."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_memory.documents import chunks

_PIECES = ("\n", "\n\n", " ", ".", "。", "e\u0301", "\u200d", "\U0001f469", "\U0001f1eb", "\U0001f3fd")
_TEXTS = st.lists(st.text(max_size=12) | st.sampled_from(_PIECES), max_size=80).map("".join)
_CLUSTERS = ("e\u0301\u0323", "\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7", "x")


@given(_TEXTS, st.integers(8, 80))
def test_nothing_but_white_space_is_lost_and_no_chunk_is_too_long(text: str, size: int) -> None:
    pieces = list(chunks(text, size))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= size for piece in pieces)
    assert all(piece == piece.strip() for piece in pieces)


@given(
    st.lists(st.sampled_from(["e\u0301\u0323", "\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7", "x"]), max_size=60)
)
def test_what_is_seen_as_one_character_stays_whole(clusters: list[str]) -> None:
    for piece in chunks("".join(clusters), 10):
        assert unicodedata.combining(piece[0]) == 0
        assert not piece.startswith("\u200d")
        assert not piece.endswith("\u200d")
        assert sum("\U0001f1e6" <= character <= "\U0001f1ff" for character in piece) % 2 == 0


def test_a_cluster_longer_than_a_chunk_is_cut_all_the_same() -> None:
    assert list(chunks("e" + "\u0301" * 25, 10)) == ["e" + "\u0301" * 9, "\u0301" * 10, "\u0301" * 6]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two three.\n\nFour five. Six.", ["One two three.", "Four five. Six."]),
        ("One two three\nfour five six seven", ["One two three", "four five six seven"]),
        ("One two. Three four. Five six", ["One two. Three four.", "Five six"]),
        ("one two three four five six", ["one two three four", "five six"]),
        ("onetwothreefourfivesixseven", ["onetwothreefourfives", "ixseven"]),
        ("これは本です。それはペンではありません。", ["これは本です。それはペンではありません。"]),
        ("東京に行きました。京都にも行きました。", ["東京に行きました。京都にも行きました。"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_cuts_are_between_paragraphs_lines_sentences_and_words(text: str, expected: list[str]) -> None:
    assert list(chunks(text, 20)) == expected


def test_a_paragraph_break_that_would_leave_a_crumb_is_passed_over() -> None:
    assert next(chunks("a\n\n" + "word " * 10, 30)) == "a\n\n" + "word " * 4 + "word"
