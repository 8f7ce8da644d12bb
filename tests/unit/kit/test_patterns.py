"""Users' regular expressions: as the standard engine finds them, and never for long."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_kit.json_schema.patterns import Undecided, search

ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "[0-9]", "(a|b)", "(?:ab|c)", "1", "-", r"\.", "(a+)", "[a-c]"])
QUANTIFIERS = st.sampled_from(["", "*", "+", "?", "{2}", "{1,3}", "{2,}", "+?"])
PIECES = st.lists(st.tuples(ATOMS, QUANTIFIERS).map("".join), max_size=5).map("".join)
PATTERNS = st.tuples(st.sampled_from(["", "^"]), PIECES, st.sampled_from(["", "$"])).map("".join)


@given(PATTERNS, st.text("abc1-.\n", max_size=8))
def test_what_is_found_is_what_the_standard_engine_finds(pattern: str, text: str) -> None:
    # The standard engine's `$` also stands before a last line end; JSON Schema's does not.
    wanted = re.search(pattern.replace("$", r"\Z"), text) is not None
    assert search(pattern, text, 10**6)[0] is wanted


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"^\d+$", "123", True),
        (r"^\d+$", "١٢٣", False),  # digits are those of ASCII, as in ECMA-262
        (r"^[\w.-]+@[\w-]+\.\w{2,}$", "a.b@example.org", True),
        (r"^[a-z0-9]+(?:-[a-z0-9]+)*$", "some-slug-1", True),
        (r"^[a-z0-9]+(?:-[a-z0-9]+)*$", "some--slug", False),
        (r"\S\s\D\W", "a b-", True),
        (r"^A\x42\u{1F600}[\u00e0-\u00ff]$", "AB😀é", True),
        (r"^[^\]\\]$", "]", False),
        (r"^(?<year>\d{4})|x$", "x", True),
        ("", "anything", True),
        ("^$", "", True),
    ],
)
def test_the_language_of_json_schema(pattern: str, text: str, found: bool) -> None:
    assert search(pattern, text, 10**6)[0] is found


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)", "(?!a)", "(?<=a)b", r"\bword", r"(a)\1", r"\p{L}", "a**", "*", "(", ")", "[", "[b-a]", "a{2,1}",
        "a{1001}", "((a{100}){100}){100}", "x" * 513, "(" * 250 + ")" * 250 + "(", "\\",
    ],
)  # fmt: skip
def test_what_no_automaton_has_is_not_decided(pattern: str) -> None:
    with pytest.raises(Undecided):
        search(pattern, "text", 10**6)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|aa)+$", "^(.*)(.*)(.*)(.*)x$", "(a*)*b", "^(a?){30}a{30}$"])
def test_work_grows_with_the_text_and_not_faster(pattern: str) -> None:
    _, short = search(pattern, "a" * 1000 + "!", 10**7)
    _, long = search(pattern, "a" * 2000 + "!", 10**7)
    assert long <= 2 * short + 100


def test_work_is_bounded() -> None:
    with pytest.raises(Undecided):
        search("^(a+)+$", "a" * 100_000, 50_000)
