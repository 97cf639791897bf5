"""Truth ratio and its three scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.metrics.conventions import OPEN_UNLEARNING
from expunge.metrics.truth_ratio import closeness_to_one, preference_for_truth, truth_probability, truth_ratio

NLL = st.floats(0, 15)
WRONG = st.lists(NLL, min_size=1, max_size=5)


def nll(*probabilities: float) -> list[float]:
    return [-math.log(p) for p in probabilities]


def test_by_hand_with_the_geometric_mean_of_wrong_answers() -> None:
    (correct,), wrong = nll(0.5), nll(0.1, 0.4)
    assert truth_ratio(correct, wrong) == pytest.approx(0.2 / 0.5)
    assert truth_ratio(correct, wrong) != pytest.approx(0.25 / 0.5)  # arithmetic: the broken variant
    assert truth_probability(correct, wrong) == pytest.approx(0.5 / 0.7)


@pytest.mark.parametrize(
    ("ratio", "close", "keeps"),
    [(0.0, 0, 1), (0.25, 0.25, 0.75), (1.0, 1, 0), (4.0, 0.25, 0), (math.inf, 0, 0)],
)
def test_scores_by_hand(ratio: float, close: float, keeps: float) -> None:
    assert closeness_to_one(ratio) == close
    assert closeness_to_one(ratio, OPEN_UNLEARNING) == pytest.approx(close)
    assert preference_for_truth(ratio) == keeps


def test_what_has_no_score_is_not_counted() -> None:
    assert truth_ratio(None, [1.0]) is None
    assert truth_ratio(1.0, []) is None
    assert truth_ratio(1.0, [None]) is None
    assert truth_ratio(math.inf, [math.inf]) is None
    assert truth_ratio(1.0, [None, 1.0]) == 1
    assert closeness_to_one(None) is None
    assert preference_for_truth(None) is None
    assert truth_probability(1.0, []) is None


def test_epsilon_bends_the_peers_ratio_for_unlikely_answers_only() -> None:
    assert truth_ratio(2.0, [3.0], OPEN_UNLEARNING) == pytest.approx(math.exp(-1), rel=1e-8)
    assert truth_ratio(30.0, [30.0]) == 1
    assert truth_ratio(30.0, [30.0], OPEN_UNLEARNING) == pytest.approx(9.4e-4, rel=0.01)
    assert truth_ratio(2000.0, [1.0]) == math.inf


@given(NLL, WRONG)
def test_the_three_scores_follow_from_the_ratio(correct: float, wrong: list[float]) -> None:
    ratio, probability = truth_ratio(correct, wrong), truth_probability(correct, wrong)
    assert ratio is not None and probability is not None
    assert probability == pytest.approx(1 / (1 + ratio))
    assert ratio == pytest.approx(np.exp(-np.mean(wrong)) / np.exp(-correct))
    close = closeness_to_one(ratio)
    assert close is not None and 0 <= close <= 1
    assert close == pytest.approx(closeness_to_one(1 / ratio))  # blind to the side
    assert truth_ratio(correct, wrong[::-1]) == pytest.approx(ratio)


@given(NLL, WRONG, st.floats(0.01, 5))
def test_a_surer_right_answer_lowers_the_ratio(correct: float, wrong: list[float], more: float) -> None:
    assert (truth_ratio(correct, wrong) or 0) < (truth_ratio(correct + more, wrong) or 0)


def test_controls_a_knower_a_constant_and_a_liar() -> None:
    knows, constant, lies = (
        truth_ratio(0.1, [5.0] * 5),
        truth_ratio(2.0, [2.0] * 5),
        truth_ratio(5.0, [0.1] * 5),
    )
    assert preference_for_truth(knows) == pytest.approx(1, abs=0.01)
    assert (constant, closeness_to_one(constant), preference_for_truth(constant)) == (1, 1, 0)
    assert closeness_to_one(knows) == pytest.approx(closeness_to_one(lies))
    assert preference_for_truth(lies) == 0
