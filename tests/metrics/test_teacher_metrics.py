"""Teacher-forced metrics: by hand, by brute-force greedy decoding, and on models whose scores are known
beforehand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.metrics import teacher
from expunge.metrics.conventions import CORRECTED, OPEN_UNLEARNING, Conventions
from expunge.records import Scored

HITS = st.lists(st.booleans(), min_size=1, max_size=12)
LOGP = st.lists(st.floats(-20, 0), min_size=1, max_size=12)
BOTH = pytest.mark.parametrize("rules", [CORRECTED, OPEN_UNLEARNING], ids=lambda rules: rules.name)


def row(hits: Sequence[bool], *, eos: bool = False, logp: Sequence[float] | None = None) -> Scored:
    return Scored(tuple(logp or [-1.0] * len(hits)), tuple(hits), eos)


def pattern(text: str) -> list[bool]:
    return [mark == "1" for mark in text]


# --- by hand ------------------------------------------------------------------------------------------------


def test_probability_by_hand() -> None:
    scored = Scored((math.log(0.5), math.log(0.125), math.log(1.0)), (True,) * 3, eos=True)
    assert teacher.mean_nll(scored) == pytest.approx(2 * math.log(2))
    assert teacher.probability(scored) == pytest.approx(0.25)
    assert teacher.probability(scored, OPEN_UNLEARNING) == pytest.approx(0.0625 ** (1 / 3))
    assert teacher.exact_memorization(scored) == 1


def test_a_text_without_an_appended_eos_keeps_its_last_token() -> None:
    scored = row(pattern("101"), logp=[-1.0, -2.0, -6.0])
    assert teacher.mean_nll(scored) == teacher.mean_nll(scored, OPEN_UNLEARNING) == 3
    assert teacher.exact_memorization(scored) == pytest.approx(2 / 3)
    assert teacher.exact_memorization(scored, OPEN_UNLEARNING) == 0.5  # drops real text
    assert teacher.extraction_strength(scored) == pytest.approx(1 / 3)


def test_perplexity_weighs_tokens_not_rows() -> None:
    rows = [row(pattern("1"), logp=[-1.0]), row(pattern("111"), logp=[-2.0] * 3)]
    assert teacher.perplexity(rows) == pytest.approx(math.exp(7 / 4))
    assert teacher.perplexity(rows) != pytest.approx(math.exp(1.5))  # the mean of row means


@pytest.mark.parametrize(
    ("hits", "corrected", "peer"),
    [
        ("1111", 1, 1),
        ("0111", 0.75, 0.75),
        ("1011", 0.5, 0.5),
        ("1110", 0, 0.25),
        ("0000", 0, 0.25),
        ("0", 0, 1),
    ],
)
def test_extraction_strength_by_hand(hits: str, corrected: float, peer: float) -> None:
    """The peer's loop ends one token early, so a model that knows nothing scores 1/L, and 1 on a one-token
    answer."""
    scored = row([*pattern(hits), True], eos=True)
    assert teacher.extraction_strength(scored) == corrected
    assert teacher.extraction_strength(scored, OPEN_UNLEARNING) == peer


def test_normalised_probability_by_hand() -> None:
    nll = [-math.log(p) for p in (0.3, 0.1, 0.2)]
    assert teacher.normalised_probability(nll[0], nll[1:]) == pytest.approx(0.5)
    assert teacher.normalised_probability(1.0, [1.0, 1.0, 1.0]) == pytest.approx(0.25)  # chance
    assert teacher.normalised_probability(1.0, [math.inf]) == 1
    assert teacher.normalised_probability(math.inf, [1.0]) == 0


def test_tiny_probabilities_are_compared_without_underflow() -> None:
    """Ten thousand nats are probability 0 in any float; the corrected ratio still knows that the options are
    equal."""
    assert teacher.normalised_probability(1e4, [1e4]) == 0.5
    assert teacher.normalised_probability(1e4, [1e4], OPEN_UNLEARNING) == 0  # epsilon wins


# --- nothing scored -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "empty", [Scored((), (), False), Scored((-0.1,), (True,), True)], ids=["none", "only eos"]
)
def test_a_row_without_an_answer_token_is_not_counted(empty: Scored) -> None:
    assert teacher.mean_nll(empty) is None
    assert teacher.probability(empty) is None
    assert teacher.exact_memorization(empty) is None
    assert teacher.extraction_strength(empty) is None
    assert teacher.perplexity([empty]) is None
    assert teacher.perplexity([empty, row(pattern("1"), logp=[-2.0])]) == pytest.approx(math.exp(2))
    assert teacher.extraction_strength(empty, OPEN_UNLEARNING) == 0


def test_options_without_a_score_are_not_counted() -> None:
    assert teacher.normalised_probability(None, [1.0]) is None
    assert teacher.normalised_probability(1.0, []) is None
    assert teacher.normalised_probability(1.0, [None, 1.0]) == 0.5
    assert teacher.normalised_probability(math.inf, [math.inf]) is None
    assert teacher.normalised_probability(math.nan, [1.0], OPEN_UNLEARNING) is None


# --- the paper's definition by brute force ------------------------------------------------------------------


def greedy_strength(answer: Sequence[int], decode: Callable[[tuple[int, ...]], int]) -> float:
    """1 - k/|y| with the fewest k such that greedy decoding from y[:k] gives y[k:]; nothing generated is no
    match."""
    for k in range(len(answer)):
        said = list(answer[:k])
        while len(said) < len(answer):
            said.append(decode(tuple(said)))
        if said == list(answer):
            return 1 - k / len(answer)
    return 0.0


@given(HITS, st.integers(0, 9))
def test_extraction_strength_is_greedy_decoding_from_every_prefix(hits: list[bool], seed: int) -> None:
    """A toy decoder: on a true prefix right or wrong as `hits` says, off it at random, sometimes luckily
    right."""
    rng = random.Random(seed)
    answer = [rng.randrange(3) for _ in hits]
    table = {
        tuple(answer[:k]): y if hit else (y + 1) % 3
        for k, (y, hit) in enumerate(zip(answer, hits, strict=True))
    }

    def decode(prefix: tuple[int, ...]) -> int:
        return table.setdefault(prefix, rng.randrange(3))

    assert teacher.extraction_strength(row(hits)) == pytest.approx(greedy_strength(answer, decode))


def suffix_strength(hits: Sequence[bool]) -> float:
    """The same, from the hit pattern alone: the first k from which all is right."""
    return next((1 - k / len(hits) for k in range(len(hits)) if all(hits[k:])), 0.0)


def first_miss(hits: Sequence[bool]) -> float:
    return next((k for k, hit in enumerate(hits) if not hit), len(hits)) / len(hits)


BROKEN: dict[str, Callable[[Sequence[bool]], float]] = {
    "floor 1/L": lambda hits: max(suffix_strength(hits), 1 / len(hits)),
    "prefix instead of suffix": first_miss,
    "share of hits": lambda hits: sum(hits) / len(hits),
    "empty suffix matches": lambda hits: (
        1 - next(k for k in range(len(hits) + 1) if all(hits[k:])) / (len(hits) + 1)
    ),
}


def disagreements(metric: Callable[[Sequence[bool]], float]) -> int:
    every = itertools.chain.from_iterable(itertools.product([True, False], repeat=n) for n in range(1, 8))
    return sum(not math.isclose(metric(hits), suffix_strength(hits)) for hits in every)


def test_all_hit_patterns_agree_and_broken_variants_do_not() -> None:
    assert disagreements(lambda hits: teacher.extraction_strength(row(hits)) or 0.0) == 0
    for name, broken in BROKEN.items():
        assert disagreements(broken) > 50, name


# --- properties ---------------------------------------------------------------------------------------------


@BOTH
@given(hits=HITS, logp=LOGP, eos=st.booleans())
def test_scores_stay_in_their_ranges(
    rules: Conventions, hits: list[bool], logp: list[float], eos: bool
) -> None:
    n = min(len(hits), len(logp))
    scored = Scored(tuple(logp[:n]), tuple(hits[:n]), eos)
    for metric in (teacher.probability, teacher.exact_memorization, teacher.extraction_strength):
        value = metric(scored, rules)
        assert value is None or 0 <= value <= 1
    ppl = teacher.perplexity([scored], rules)
    assert ppl is None or ppl >= 1


@given(HITS, st.integers(0, 11))
def test_one_more_hit_never_lowers_a_score(hits: list[bool], at: int) -> None:
    better = [hit or i == at for i, hit in enumerate(hits)]
    for metric in (teacher.exact_memorization, teacher.extraction_strength):
        assert (metric(row(better)) or 0) >= (metric(row(hits)) or 0)


@given(HITS)
def test_extraction_strength_is_at_most_exact_memorisation(hits: list[bool]) -> None:
    assert (teacher.extraction_strength(row(hits)) or 0) <= (
        teacher.exact_memorization(row(hits)) or 0
    ) + 1e-12


@given(st.lists(LOGP, min_size=1, max_size=5), st.randoms())
def test_perplexity_does_not_depend_on_the_order_of_rows(sets: list[list[float]], rng: random.Random) -> None:
    rows = [row([True] * len(logp), logp=logp) for logp in sets]
    before = teacher.perplexity(rows)
    rng.shuffle(rows)
    assert teacher.perplexity(rows) == pytest.approx(before)


@given(st.floats(0, 30), st.lists(st.floats(0, 30), min_size=1, max_size=5), st.floats(0.01, 5))
def test_normalised_probability_falls_with_the_right_answers_loss(
    correct: float, wrong: list[float], more: float
) -> None:
    here, worse = (teacher.normalised_probability(nll, wrong) for nll in (correct, correct + more))
    assert here is not None and worse is not None and 0 <= worse <= here <= 1


# --- models whose scores are known --------------------------------------------------------------------------


def test_a_perfect_a_constant_and_a_random_model() -> None:
    """Ten thousand random answers over 50 tokens: the perfect model has 1 everywhere, the others next to
    nothing."""
    rng, vocabulary = random.Random(0), 50
    answers = [[rng.randrange(vocabulary) for _ in range(rng.randrange(5, 15))] for _ in range(10_000)]

    def average(
        metric: Callable[..., float | None], guess: Callable[[], int], rules: Conventions = CORRECTED
    ) -> float:
        scored = [row([*(guess() == y for y in answer), True], eos=True) for answer in answers]
        return sum(metric(s, rules) or 0 for s in scored) / len(scored)

    perfect = [row([True] * len(answer), logp=[0.0] * len(answer)) for answer in answers]
    assert {teacher.extraction_strength(s) for s in perfect} == {1}
    assert {teacher.exact_memorization(s) for s in perfect} == {1}
    assert teacher.perplexity(perfect) == 1
    uniform = row([False] * 9, logp=[-math.log(vocabulary)] * 9)
    assert teacher.probability(uniform) == pytest.approx(1 / vocabulary)
    assert teacher.perplexity([uniform]) == pytest.approx(vocabulary)
    for guess in (lambda: 7, lambda: rng.randrange(vocabulary)):
        assert average(teacher.exact_memorization, guess) == pytest.approx(1 / vocabulary, abs=0.003)
        assert average(teacher.extraction_strength, guess) < 0.004
        assert (
            average(teacher.extraction_strength, guess, OPEN_UNLEARNING) > 0.1
        )  # the floor that we corrected
