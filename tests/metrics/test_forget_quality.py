"""Forget quality: a second-seed control is null, the original is not, and the interval of D covers the
truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.metrics.forget_quality import forget_quality
from expunge.metrics.statistics import Interval

PEOPLE = [f"{i // 10}" for i in range(400)]
RATIOS = st.lists(st.floats(0, 5), min_size=4, max_size=20)


def models(rng: np.random.Generator, shift: float) -> tuple[list[float], list[float]]:
    """Log truth ratios of two models that agree on which people and questions are hard, `shift` apart; N(0,
    1)."""
    shared = 0.5 * rng.normal(size=(40, 1)) + 0.5 * rng.normal(size=(40, 10))
    one, other = (shared + np.sqrt(0.5) * rng.normal(size=(40, 10)) for _ in range(2))
    return np.exp(one + shift).ravel().tolist(), np.exp(other).ravel().tolist()


def test_the_controls_twin_is_null_and_the_knower_is_not() -> None:
    twin = forget_quality(*models(np.random.default_rng(0), 0.0), PEOPLE)
    knower = forget_quality(*models(np.random.default_rng(0), -1.0), PEOPLE)
    assert twin.p is not None and twin.p > 0.05 and twin.distance.low == 0
    assert knower.p is not None and knower.p < 1e-20
    assert knower.distance.low is not None and knower.distance.low > 0.2


def test_a_model_equals_itself_and_a_constant_equals_nothing() -> None:
    ratios, _ = models(np.random.default_rng(0), 0.0)
    itself = forget_quality(ratios, ratios, PEOPLE)
    assert itself == (1.0, Interval(0.0, 0.0, 0.0, 400, 40))
    constant = forget_quality([1.0] * 400, ratios, PEOPLE)
    assert constant.p is not None and constant.p < 1e-20
    assert constant.distance.value == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("shift", "truth"), [(0.0, 0.0), (0.3, 2 * stats.norm.cdf(0.15) - 1)])
def test_the_interval_covers_and_a_percentile_interval_would_not(shift: float, truth: float) -> None:
    rng, held, percentile_held = np.random.default_rng(0), 0, 0
    for _ in range(60):
        a, b = models(rng, shift)
        found = forget_quality(a, b, PEOPLE, n_boot=200).distance
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
        low, high = percentile_interval(np.array(a), np.array(b), rng)
        percentile_held += low <= truth <= high
    assert held / 60 >= 0.9
    assert percentile_held / 60 < 0.75


def percentile_interval(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The broken variant: percentiles of resampled distances, which chance has pushed up twice."""
    a, b = a.reshape(40, 10), b.reshape(40, 10)
    found = []
    for _ in range(40):
        drawn = rng.integers(40, size=40)
        found.append(stats.ks_2samp(a[drawn].ravel(), b[drawn].ravel(), method="asymp").statistic)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


@given(RATIOS, st.integers(0, 99))
def test_order_and_monotone_transforms_change_nothing(ratios: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    control, people = rng.random(len(ratios)) * 5, [f"{i % 3}" for i in range(len(ratios))]
    before = forget_quality(ratios, control.tolist(), people, n_boot=30)
    order = rng.permutation(len(ratios))
    again = forget_quality(
        [8 * ratios[i] for i in order], (8 * control[order]).tolist(), [people[i] for i in order], n_boot=30
    )
    assert again.p == before.p
    assert again.distance == pytest.approx(before.distance)
    low, high = before.distance.low, before.distance.high
    assert low is not None and high is not None and 0 <= low <= (before.distance.value or 0) <= high <= 1


def test_uncounted_rows_and_other_rows_of_the_control() -> None:
    some = forget_quality([1.0, None, 3.0, 4.0], [2.0, 2.0, None, 5.0], ["a", "b", "c", "d"])
    assert some.distance.n == 3 and some.distance.entities == 4
    other = forget_quality([1.0, 3.0, 4.0], [2.0, 5.0], ["a", "b", ""], ["a", "c"])
    assert other.distance.entities == 4 and other.p is not None
    with pytest.raises(ValueError, match="control's too"):
        forget_quality([1.0, 3.0], [2.0], ["a", "b"])


def test_too_little_to_test() -> None:
    assert forget_quality([None], [1.0], ["a"]) == (None, Interval(None, None, None, 0, 1))
    alone = forget_quality([1.0, 2.0], [3.0, 4.0], ["a", "a"])
    assert alone.distance == Interval(1.0, None, None, 2, 1) and alone.p is not None


def test_resamples_that_lose_a_whole_side_are_left_out() -> None:
    found = forget_quality([1.0, 2.0], [3.0, 4.0], ["a", "b"], ["c", "d"])
    assert found.distance.value == 1 and found.distance.low is not None
