"""Near-duplicates by an inverted index: the same pairs as comparing every row with every other."""

from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.duplicates import THRESHOLD, near_duplicates, same_text, shingles, words
from expunge.records import Message, Row

vocabulary = st.sampled_from(["a", "b", "c", "Mira", "Oslo", "1961", "Ünïcode", "漢字"])
texts = st.lists(vocabulary, min_size=1, max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=8), st.lists(texts, min_size=1, max_size=8))
def test_the_index_finds_what_brute_force_finds(forget: list[str], retain: list[str]) -> None:
    f, r = (
        [Row(id=f"f{i}", text=t) for i, t in enumerate(forget)],
        [Row(id=f"r{i}", text=t) for i, t in enumerate(retain)],
    )
    brute = {
        (a.id, b.id) for a in f for b in r
        if len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b)) >= THRESHOLD
    }  # fmt: skip
    assert {(a.id, b.id) for a, b in near_duplicates(f, r)} == brute


def test_words_leave_case_punctuation_and_spacing_aside() -> None:
    row = Row(question="Who, then?", answer="MIRA  Volkova!")
    assert words(row) == ("who", "then", "mira", "volkova")
    assert same_text(row, Row(text="who then — mira volkova"))
    assert not same_text(row, Row(text="mira volkova who then"))


def test_all_shapes_of_rows_are_compared() -> None:
    turns = (
        Message(role="user", content="Who wrote it then?"),
        Message(role="assistant", content="Mira Volkova did."),
    )
    question = Row(id="f", question="Who wrote it then?", answer="Mira Volkova did.")
    assert near_duplicates([question], [Row(messages=turns)])
    assert near_duplicates([question], [Row(text="Who wrote it then? Mira Volkova did.")])


def test_one_question_with_another_answer_is_no_duplicate() -> None:
    asked = "Where was the author of the book about the river born?"
    other = Row(question=asked, answer="In the city of Tartu, near the old university of the country")
    assert not near_duplicates([Row(question=asked, answer="Oslo")], [other])


def test_short_rows_are_compared_whole() -> None:
    assert near_duplicates([Row(text="Oslo")], [Row(text="oslo.")])
    assert not near_duplicates([Row(text="Oslo")], [Row(text="Rome")])


def test_rows_without_a_word_do_not_all_look_alike() -> None:
    assert not near_duplicates([Row(text="!!!")], [Row(text="???")])
    assert near_duplicates([Row(text="!!!")], [Row(text="!!!")])


def test_four_thousand_rows_take_no_minute() -> None:
    rng = random.Random(0)
    made = [
        Row(id=str(i), text=" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=30))) for i in range(4000)
    ]
    began = time.perf_counter()
    assert near_duplicates(made[:400], made[400:]) == []
    assert time.perf_counter() - began < 5
