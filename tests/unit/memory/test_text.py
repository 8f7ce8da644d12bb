"""Terms: what the lexical leg sees of a text."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from janus_memory.text import bag, date_terms, lexeme, stem, term_hash, terms, words


def test_stop_words_and_case_do_not_count() -> None:
    assert terms("The Cat sat on THE mats") == ["cat", "sat", "mat"]


def test_inflections_share_a_term() -> None:
    assert stem("painting") == stem("painted") == stem("paints") == stem("paint")


def test_numbers_and_codes_stay_as_they_are() -> None:
    for word in ("5000", "1000", "2022", "99100", "ba77", "inv100", "number55"):
        assert stem(word) == word
    assert stem("1990s") == "1990"
    assert stem("running") == "run"


def test_accents_apostrophes_and_width_do_not_matter() -> None:
    assert terms("Café") == terms("cafe\u0301") == terms("cafe")
    assert words("don\u2019t") == words("don't") == ["dont"]
    assert terms("Ｔｏｋｙｏ") == terms("tokyo")


def test_scripts_without_spaces_are_cut_into_pairs() -> None:
    assert words("東京都に") == ["東京", "京都", "都に"]
    assert words("犬") == ["犬"]


def test_korean_and_cyrillic_words_stay_whole() -> None:
    assert words("안녕 Привет") == ["안녕", "привет"]


def test_a_date_is_three_terms() -> None:
    assert date_terms(datetime(2023, 5, 8, 23, 59, tzinfo=UTC)) == ("8", "may", "2023")


def test_hashes_are_the_same_on_every_platform() -> None:
    assert term_hash("paint").hex() == "e62c6fa5"
    assert len(bag(["a", "b", "a"])) == 12


def test_a_lexeme_names_its_space() -> None:
    assert lexeme(26, "paint") == "1a:paint"


@given(st.text(max_size=400))
def test_any_text_gives_storable_terms(text: str) -> None:
    for term in terms(text):
        assert term
        assert len(term) <= 64
        assert not set(term) & set(" '\\\x00:")
