"""Text of any language becomes ids by a hash that is the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infi_edge.preprocess import TextSpec
from tests.conftest import DATA, ROOT, need

WORDS, CHARS = TextSpec(), TextSpec(unit="chars")
ANYTHING = st.text(st.characters(), max_size=300)  # lone surrogates included
LINES = (
    "The train to Zürich leaves at 9.",
    "привет мир",
    "नमस्ते दुनिया",
    "שָׁלוֹם עולם",
    "مرحبا بالعالم",
    "日本語のテキスト",
    "👩‍👩‍👧 🇨🇭 ❤️",
    "e\u0301a\u0308\u0323",
    "os.fsdecode: \udce4\ud800",
)


def ids(text: str, spec: TextSpec = WORDS) -> list[int]:
    """The ids of a text, without what fills up."""
    found = spec.tensor(text)[0]
    return found[found > 0].tolist()


@given(ANYTHING, st.sampled_from(["words", "chars"]), st.integers(2, 70), st.integers(1, 40))
@example("\ud800", "words", 2, 1)
@example("", "chars", 4096, 1)
def test_any_text_gives_ids_below_the_buckets(
    text: str, unit: str, buckets: int, length: int
) -> None:
    spec = TextSpec(length, buckets, unit)  # type: ignore[arg-type]
    assert spec.problem() is None
    tensor = spec.tensor(text)
    assert tensor.shape == (1, length)
    assert tensor.dtype == np.int32
    assert tensor.tobytes() == spec.tensor(text).tobytes()
    count = int((tensor > 0).sum())
    assert ((tensor[0, :count] >= 1) & (tensor[0, :count] < buckets)).all()
    assert not tensor[0, count:].any()
    features = spec.features(tensor)
    assert features.shape == (spec.feature_count,)
    assert features.dtype == np.float32
    assert ((features >= 0) & (features <= 1)).all()
    assert features[-1] == pytest.approx(count / length)


@given(ANYTHING, st.sampled_from(["words", "chars"]))
@example("ﬁne \uff46\uff55\uff4c\uff4c ① ½ Å", "words")
@example("e\u0301" * 4000, "chars")
@example("\u1f82 " * 3000, "words")
@example("\uac01" * 3000, "words")
def test_texts_that_are_nfkc_equal_have_equal_ids(text: str, unit: str) -> None:
    spec = TextSpec(unit=unit)  # type: ignore[arg-type]
    expected = spec.tensor(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert (spec.tensor(unicodedata.normalize(form, text)) == expected).all()


def test_ids_are_those_of_another_process_whatever_its_hash_seed() -> None:
    program = (
        "import sys; from infi_edge.preprocess import TextSpec\n"
        "for line in eval(sys.stdin.read()):\n"
        "    print(TextSpec().tensor(line).tolist(), TextSpec(unit='chars').tensor(line).tolist())"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", program],
            input=ascii(LINES),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    here = [f"{WORDS.tensor(t).tolist()} {CHARS.tensor(t).tolist()}" for t in LINES]
    assert answers[0].splitlines() == answers[1].splitlines() == here


def test_ids_are_what_bundles_were_trained_with() -> None:
    sentence = [634, 2036, 2603, 2281, 1333, 634, 2878, 3447, 1937, 2272, 3999]
    assert ids("The cat sat on the mat in 2024.") == sentence
    assert ids("Zürich ", CHARS) == [3038, 1439, 242, 2393]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("red green", 2),
        ("don't stop", 2),
        ("a,b;c", 5),
        ("привет мир", 2),
        ("हिन्दी में", 2),
        ("எழுத்து", 1),
        ("שָׁלוֹם", 1),
        ("مُحَمَّد", 1),
        ("日本語", 3),
        ("ไทย", 3),
        ("👍👍", 2),
        ("snake_case", 2),
        ("", 0),
        (" \t\u3000\u2028", 0),
    ],
)
def test_words_are_the_words_of_each_script(text: str, words: int) -> None:
    assert len(ids(text)) == words


def test_japanese_after_latin_letters_is_still_read_by_character() -> None:
    assert ids("iphone を買う") == ids("iphoneを買う")
    assert len(ids("iphoneを買う")) == 4


def test_a_name_differs_from_a_word_and_numbers_share_their_shape() -> None:
    assert ids("apple") != ids("Apple")
    assert ids("Apple")[0] == ids("apple")[0] == ids("APPLE")[0]
    assert ids("Apple")[1] == ids("Bernard")[1] != ids("APPLE")[1]
    assert ids("1984")[1] == ids("2024")[1]
    assert ids("1984")[0] != ids("2024")[0]


def test_ngrams_are_runs_of_characters_whatever_the_case_and_spaces() -> None:
    assert len(ids("abcdef", CHARS)) == 4
    assert ids("  ABC \n def", CHARS) == ids("abc def", CHARS)
    assert ids("abcdef", CHARS)[1:] == ids("bcdef", CHARS)
    assert len(ids("ab", CHARS)) == 1
    assert ids("", CHARS) == []


@pytest.mark.parametrize(
    "text",
    ["a" * (1 << 20), "Ab, " * (1 << 18), "日" * (1 << 20), "a'" * (1 << 19), " " * (1 << 20)],
)
@pytest.mark.parametrize("spec", [WORDS, CHARS], ids=["words", "chars"])
def test_a_line_of_a_megabyte_is_read_as_its_beginning(text: str, spec: TextSpec) -> None:
    assert (spec.tensor(text) == spec.tensor(text[:8192])).all()
    assert len(ids("x " * (1 << 19), spec)) == spec.length


def test_a_run_of_combining_characters_is_cut_before_it_is_sorted() -> None:
    # NFKC sorts such a run, the low marks first, in quadratic time: 1 MB would take minutes.
    high, low = "\u0300" * 6000, "\u0316" * 6000
    assert ids(high + low, CHARS) == ids(high, CHARS)
    assert ids(high[:10] + low, CHARS) != ids(high[:10], CHARS)


@pytest.mark.parametrize("text", [b"bytes", None, 3, ["a"], np.array("text")])
def test_what_is_no_text_is_a_value_error(text: object) -> None:
    with pytest.raises(ValueError, match="a text is str, not "):
        WORDS.tensor(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"length": 0}, "length"),
        ({"length": 1 << 17}, "length"),
        ({"buckets": 1}, "buckets"),
        ({"buckets": 1 << 30}, "buckets"),
        ({"ngram": 0}, "n-gram"),
        ({"ngram": 99}, "n-gram"),
    ],
)
def test_impossible_fields_are_told(fields: dict[str, int], words: str) -> None:
    assert words in (TextSpec(**fields).problem() or "")


def test_a_specification_round_trips() -> None:
    spec = TextSpec(32, 1000, "chars", 4)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=TextSpec) == spec


def test_words_of_real_tweets_hardly_collide() -> None:
    lines = need(DATA / "wnut17" / "wnut17train.conll").read_text(encoding="utf-8").split("\n")
    tokens = {line.split("\t")[0].casefold() for line in lines if "\t" in line}
    words = sorted({t for t in tokens if t.isalpha() and t.isascii()})[:1000]
    assert len(words) == 1000
    found = [ids(word)[0] for word in words]
    # 1,000 balls in 4,095 bins leave 886 bins that are not empty, give or take 10.
    assert len(set(found)) > 840
