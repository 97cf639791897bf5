"""Model utility: all nine parts, some of them, none, and its interval."""

from __future__ import annotations

import math
import statistics as standard

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.metrics.utility import PARTS, SPLITS, model_utility, model_utility_interval

NINE = st.lists(st.floats(0.001, 1), min_size=9, max_size=9)


def rows(n: int = 60, seed: int = 0) -> tuple[dict[str, list[float | None]], dict[str, list[str]]]:
    rng = np.random.default_rng(seed)
    values: dict[str, list[float | None]] = {part: (0.3 + 0.5 * rng.random(n)).tolist() for part in PARTS}
    return values, {split: [f"{split} {i // 5}" for i in range(n)] for split in SPLITS}


@given(NINE)
def test_it_is_the_harmonic_mean_of_nine(values: list[float]) -> None:
    utility = model_utility(dict(zip(PARTS, values, strict=True)))
    assert utility.value == pytest.approx(standard.harmonic_mean(values))
    assert (utility.used, utility.missing) == (PARTS, ())
    assert min(values) <= (utility.value or 0) * (1 + 1e-9) <= sum(values) / 9 * (1 + 1e-6)


def test_missing_parts_are_named_not_guessed() -> None:
    utility = model_utility(
        {"retain_probability": 0.5, "retain_truth_ratio": None, "world_facts_truth_ratio": math.nan}
    )
    assert utility.value == 0.5 and utility.used == ("retain_probability",)
    assert "retain_truth_ratio" in utility.missing and len(utility.missing) == 8
    assert model_utility({}) == (None, (), PARTS)


def test_a_collapsed_part_is_a_collapsed_model() -> None:
    parts = dict.fromkeys(PARTS, 0.9)
    assert model_utility(parts | {"real_authors_rouge_l_recall": 0.0}).value == 0
    assert model_utility(dict.fromkeys(PARTS, 1.0)).value == 1


def test_an_unknown_part_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="Did you mean 'retain_truth_ratio'"):
        model_utility({"retain_truthratio": 0.5})


def test_the_interval_holds_the_value_and_narrows_with_rows() -> None:
    few, many = (model_utility_interval(*rows(n)) for n in (30, 480))
    for found in (few, many):
        assert found.low is not None and found.high is not None and found.value is not None
        assert found.low < found.value < found.high
    assert (many.high or 0) - (many.low or 0) < 0.5 * ((few.high or 0) - (few.low or 0))
    assert (few.n, few.entities) == (90, 18)
    assert model_utility_interval(*rows()) == model_utility_interval(*rows())


def test_the_interval_of_some_parts_and_of_too_few_entities() -> None:
    values, entities = rows()
    one = model_utility_interval({"retain_probability": values["retain_probability"]}, entities)
    assert one.n == 60 and one.low is not None
    alone = model_utility_interval({"retain_probability": [0.5, 0.7]}, {"retain": ["a", "a"]})
    assert alone.value == pytest.approx(0.6) and alone.low is None
    assert model_utility_interval({}, {}) == (None, None, None, 0, 0)


def test_splits_of_one_size_are_resampled_independently() -> None:
    """The same nine columns in every split: shared draws would widen the interval as if there were one
    split."""
    values, entities = rows()
    same = {part: values[PARTS[i % 3]] for i, part in enumerate(PARTS)}
    whole = model_utility_interval(same, entities)
    third = model_utility_interval({part: same[part] for part in PARTS[:3]}, entities)
    assert (whole.high or 0) - (whole.low or 0) < 0.75 * ((third.high or 0) - (third.low or 0))
