"""ROUGE against the rouge-score package, fluency against its definition, and outputs whose scores are
known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from expunge.metrics.conventions import OPEN_UNLEARNING
from expunge.metrics.text import Rouge, common_subsequence, first_answer, fluency, ngram_entropy, rouge

WORDS = st.lists(
    st.sampled_from(
        [
            "the",
            "a",
            "running",
            "runs",
            "ran",
            "cat",
            "cats,",
            "Cat!",
            "12",
            "café",
            "naïve",
            "—",
            "'",
            "writes",
        ]
    ),
    max_size=25,
)
TEXT = WORDS.map(" ".join)
PACKAGE = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def package(reference: str, output: str) -> Rouge:
    one, longest = (PACKAGE.score(reference, output)[kind] for kind in ("rouge1", "rougeL"))
    return Rouge(one.recall, one.fmeasure, longest.recall, longest.fmeasure)


def test_by_hand() -> None:
    scores = rouge("the cat sat on the mat", "the mat sat")
    assert scores == pytest.approx((3 / 6, 2 * 1 * 0.5 / 1.5, 2 / 6, 2 * (2 / 3) * (1 / 3) / 1))
    assert rouge("She writes novels.", "she wrote NOVEL")[2] == pytest.approx(2 / 3)  # type: ignore[index]


@given(TEXT, TEXT)
def test_equals_the_package_on_any_pair(reference: str, output: str) -> None:
    assert rouge(reference, output, OPEN_UNLEARNING) == pytest.approx(package(reference, output))


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abc"), max_size=30))
def test_common_subsequence_equals_the_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(a, b) == common_subsequence(b, a) == table[-1][-1]


@pytest.mark.parametrize("output", ["", "   \n", "...!", "日本語"])
def test_an_output_without_a_word_matches_nothing(output: str) -> None:
    assert rouge("the answer", output) == (0, 0, 0, 0)


@pytest.mark.parametrize("reference", ["", "?!", "日本語"])
def test_a_reference_without_a_word_is_not_counted(reference: str) -> None:
    assert rouge(reference, "anything") is None
    assert rouge(reference, reference) is None
    assert rouge(reference, "anything", OPEN_UNLEARNING) == (0, 0, 0, 0)


def test_a_perfect_a_constant_and_a_random_model() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(500)]
    references = [" ".join(rng.sample(vocabulary, 12)) for _ in range(300)]

    def recall(outputs: list[str]) -> float:
        scores = [rouge(r, o) for r, o in zip(references, outputs, strict=True)]
        return sum(s.rouge_l_recall for s in scores if s) / len(scores)

    assert recall(references) == 1
    assert recall([""] * 300) == 0
    assert recall(["I do not know."] * 300) == 0
    assert recall([" ".join(rng.sample(vocabulary, 12)) for _ in references]) < 0.05
    everything = [" ".join(vocabulary)] * 300
    assert recall(everything) > 0.3  # recall rewards babble: F1 does not
    assert max(s.rouge_l_f1 for s in map(rouge, references, everything) if s) < 0.05


@given(TEXT.filter(str.split), TEXT)
def test_more_of_the_reference_never_lowers_recall(reference: str, output: str) -> None:
    less, more = rouge(reference, output), rouge(reference, f"{output} {reference}")
    assert (less is None) == (more is None)
    if less and more:
        assert more.rouge_l_recall == 1 and less.rouge_l_recall <= 1


def test_first_answer_stops_where_the_next_question_starts() -> None:
    assert first_answer(" Paris\n\nQuestion: and") == "Paris"
    assert first_answer("Paris\nQuestion: x\n\ny") == "Paris"
    assert first_answer("ParisQuestion: x") == "Paris"
    assert first_answer("Paris\nFrance ") == "Paris\nFrance"
    assert first_answer("Question: why") == ""


# --- fluency ------------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    assert ngram_entropy(["a", "b", "c", "d"], 2) == pytest.approx(math.log2(3))
    assert ngram_entropy(["a", "b", "a", "b", "a"], 2) == pytest.approx(1)  # bits: in nats it would be .69
    assert ngram_entropy(["a", "b", "a", "b", "c"], 1) == pytest.approx(
        2 * 0.4 * math.log2(2.5) + 0.2 * math.log2(5)
    )


def test_fluency_is_the_mean_of_the_two_weighted_entropies() -> None:
    text = "one two three four five"
    h2, h3 = math.log2(4), math.log2(3)
    assert fluency(text) == pytest.approx((2 / 3 * h2 + 4 / 3 * h3) / 2)
    assert fluency(text) != pytest.approx(2 / 3 * h2 + 4 / 3 * h3)  # the sum: the broken variant


@pytest.mark.parametrize("text", ["", "  ", "word", "two words", "the " * 200])
def test_nothing_said_and_one_word_for_ever_have_no_fluency(text: str) -> None:
    assert fluency(text) == 0
    assert math.copysign(1, fluency(text)) == 1


@given(WORDS)
def test_fluency_is_bounded_by_the_number_of_words(words: list[str]) -> None:
    assert 0 <= fluency(" ".join(words)) <= math.log2(3 * len(words) + 1)


def test_repetition_lowers_fluency_and_case_of_collapse_is_seen() -> None:
    rng = random.Random(0)
    lively = [f"word{rng.randrange(300)}" for _ in range(100)]
    stuck = lively[:10] * 10
    assert fluency(" ".join(lively)) > 6.4 > 3.4 > fluency(" ".join(stuck)) > 3.2
    assert fluency("well, yes.") == pytest.approx((math.log2(3) + 2 * 1) / 3)  # marks are tokens
