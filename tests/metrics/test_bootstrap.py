"""Means, intervals over entities, paired differences: coverage on made-up populations, and what must not
change."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.metrics.statistics import (
    Interval,
    bootstrap_means,
    counted,
    entity_bootstrap,
    harmonic_mean,
    ks,
    mean,
    paired_difference,
)

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=40)


def owners(n: int, entities: int) -> list[str]:
    return [f"person {i % entities}" for i in range(n)]


# --- what counts --------------------------------------------------------------------------------------------


def test_none_and_nan_are_left_out_and_said_so() -> None:
    values = [1.0, None, 3.0, math.nan]
    assert mean(values) == 2
    assert harmonic_mean([1.0, None, 3.0]) == 1.5
    assert counted(values).tolist() == [1, 3]
    interval = entity_bootstrap(values, ["a", "b", "c", "d"])
    assert (interval.value, interval.n, interval.entities) == (2, 2, 2)
    assert (interval.low, interval.high) == (1, 3)


def test_nothing_to_count_gives_nothing() -> None:
    assert mean([]) is mean([None]) is harmonic_mean([]) is None
    assert ks([], [1.0]) is ks([1.0], [math.nan]) is None
    assert entity_bootstrap([None], ["a"]) == Interval(None, None, None, 0, 0)
    assert entity_bootstrap([], []) == Interval(None, None, None, 0, 0)


def test_one_entity_has_a_value_but_no_interval() -> None:
    assert entity_bootstrap([1.0, 2.0, 6.0], ["a"] * 3) == Interval(3.0, None, None, 3, 1)


def test_a_row_without_an_entity_is_its_own() -> None:
    assert entity_bootstrap([1.0, 2.0, 3.0], ["", "", ""]).entities == 3


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values but 1 entities"):
        entity_bootstrap([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="same rows twice"):
        paired_difference([1.0], [1.0, 2.0], ["a"])


def test_harmonic_mean_is_zero_with_one_zero_and_refuses_less() -> None:
    assert harmonic_mean([0.5, 0.0, 0.9]) == 0
    assert harmonic_mean([0.5, 0.25]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least 0"):
        harmonic_mean([-0.1, 1.0])


# --- invariances --------------------------------------------------------------------------------------------


@given(VALUES, st.randoms())
def test_the_order_of_rows_changes_nothing(values: list[float], rng: random.Random) -> None:
    rows = list(zip(values, owners(len(values), 5), strict=True))
    before = entity_bootstrap(*zip(*rows, strict=True), n_boot=50)  # type: ignore[arg-type]
    rng.shuffle(rows)
    assert entity_bootstrap(*zip(*rows, strict=True), n_boot=50) == pytest.approx(before)  # type: ignore[arg-type]


@given(VALUES)
def test_the_interval_holds_the_range_and_the_loop_agrees_with_the_vectors(values: list[float]) -> None:
    entities = owners(len(values), 4)
    fast = entity_bootstrap(values, entities, n_boot=60)
    slow = entity_bootstrap(values, entities, lambda x: float(np.mean(x)), n_boot=60)
    assert fast == pytest.approx(slow)
    if fast.low is not None and fast.high is not None:
        assert min(values) - 1e-9 <= fast.low <= fast.high <= max(values) + 1e-9


def test_the_seed_decides_and_is_the_same_for_two_metrics_of_the_same_rows() -> None:
    values = np.random.default_rng(0).random(60).tolist()
    entities = owners(60, 12)
    assert entity_bootstrap(values, entities, seed=1) == entity_bootstrap(values, entities, seed=1)
    assert entity_bootstrap(values, entities, seed=1) != entity_bootstrap(values, entities, seed=2)
    once, twice = bootstrap_means(values, entities), bootstrap_means([2 * v for v in values], entities)
    assert twice == pytest.approx(2 * once)


def test_other_statistics_are_resampled_too() -> None:
    interval = entity_bootstrap(
        [float(i) for i in range(100)], owners(100, 20), lambda x: float(np.median(x))
    )
    assert interval.value == 49.5 and interval.low is not None and interval.high is not None
    assert interval.low < 49.5 < interval.high


# --- does the interval hold what it promises? ---------------------------------------------------------------


def clustered(rng: np.random.Generator, entities: int = 40, rows: int = 10) -> list[float]:
    """Rows of one entity share most of what makes them differ from 0."""
    people = rng.normal(size=(entities, 1))
    return (people + 0.5 * rng.normal(size=(entities, rows))).ravel().tolist()


def coverage(interval: Callable[[list[float]], Interval], trials: int = 200) -> float:
    rng, held = np.random.default_rng(0), 0
    for _ in range(trials):
        found = interval(clustered(rng))
        assert found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    return held / trials


def test_intervals_over_entities_cover_and_intervals_over_rows_do_not() -> None:
    people = [f"{i // 10}" for i in range(400)]
    assert coverage(lambda values: entity_bootstrap(values, people, n_boot=300)) > 0.9
    assert coverage(lambda values: entity_bootstrap(values, [""] * 400, n_boot=300)) < 0.65  # broken: rows


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(1)
    model = clustered(rng)
    other = [v - 0.05 + 0.01 * float(rng.normal()) for v in model]
    people = [f"{i // 10}" for i in range(400)]
    paired = paired_difference(model, other, people)
    assert paired.value == pytest.approx(0.05, abs=0.002) and paired.low is not None and paired.low > 0.045
    a, b = entity_bootstrap(model, people), entity_bootstrap(other, people)
    assert a.low is not None and b.high is not None and a.low < b.high  # they overlap


def test_a_model_does_not_differ_from_itself() -> None:
    values: list[float | None] = [0.2, None, 0.9, math.inf]
    assert paired_difference(values, values, list("abcd")) == Interval(0.0, 0.0, 0.0, 2, 2)


def test_ks_by_hand_and_against_scipy() -> None:
    found = ks([1.0, 2.0, 3.0, None], [2.5, 3.5, math.inf])
    assert found is not None and found.distance == pytest.approx(2 / 3)
    same = ks([1.0, 2.0], [1.0, 2.0])
    assert same is not None and (same.distance, same.p) == (0, 1)
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(40) ** 2
    assert ks(a.tolist(), b.tolist()) == pytest.approx(tuple(stats.ks_2samp(a, b)))


def test_four_thousand_rows_take_milliseconds() -> None:
    values, entities = np.random.default_rng(0).random(4000).tolist(), owners(4000, 4000)
    times = []
    for _ in range(5):
        start = time.process_time()
        entity_bootstrap(values, entities)
        times.append(time.process_time() - start)
    assert min(times) < 0.2  # 0.02 s on the machine it was written on
