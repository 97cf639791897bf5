"""A few numbers out of real evaluation logs, kept here so that every oracle is alive without the logs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from expunge.metrics.conventions import OPEN_UNLEARNING
from expunge.metrics.forget_quality import forget_quality
from expunge.metrics.teacher import extraction_strength, normalised_probability, probability
from expunge.metrics.truth_ratio import truth_ratio
from expunge.metrics.utility import PARTS, model_utility
from expunge.records import Scored

ORACLES: dict[str, Any] = json.loads((Path(__file__).parent / "oracles.json").read_text(encoding="utf-8"))


def ranks(order: str) -> tuple[list[float], list[float]]:
    """Two samples from the order in which they interleave: 1 = the model, 0 = the control, after a leading
    1."""
    labels = bin(int(order, 16))[3:]
    model, control = ([float(i) for i, label in enumerate(labels) if label == which] for which in "10")
    return model, control


@pytest.mark.parametrize("name", ["llama2-7b", "phi-1.5", "peer"])
def test_forget_quality_of_full_against_retain90(name: str) -> None:
    oracle = ORACLES["forget_quality"][name]
    model, control = ranks(oracle["order"])
    found = forget_quality(model, control, [""] * len(model))
    assert found.p == pytest.approx(oracle["p"], rel=1e-9)
    assert found.distance.low is not None and found.distance.low > 0.2


@pytest.mark.parametrize("row", ORACLES["tofu_rows"])
def test_truth_ratio_of_llama2_7b(row: dict[str, Any]) -> None:
    assert truth_ratio(row["correct"], row["wrong"]) == pytest.approx(row["truth_ratio"], rel=1e-6)
    arithmetic = np.exp(-np.array(row["wrong"])).mean() / math.exp(-row["correct"])
    assert arithmetic != pytest.approx(row["truth_ratio"], rel=1e-3)


@pytest.mark.parametrize("row", ORACLES["tofu_options"])
def test_option_probability_of_llama2_7b(row: dict[str, Any]) -> None:
    found = normalised_probability(row["correct"], row["wrong"])
    assert found is not None and -math.log(found) == pytest.approx(row["log_odds_loss"], rel=1e-9)


@pytest.mark.parametrize("row", ORACLES["peer_rows"])
def test_rows_of_the_peer(row: dict[str, Any]) -> None:
    found = normalised_probability(row["correct"], row["wrong"], OPEN_UNLEARNING)
    assert found == pytest.approx(row["normalised"], rel=1e-6)
    assert truth_ratio(row["correct"], row["wrong"], OPEN_UNLEARNING) == pytest.approx(
        row["truth_ratio"], rel=1e-9
    )


@pytest.mark.parametrize("row", ORACLES["peer_strength"])
def test_extraction_strength_of_the_peer(row: dict[str, Any]) -> None:
    """Hit patterns of a real model's pass, the last of them the appended EOS, with the value that was
    printed."""
    hits = tuple(mark == "1" for mark in row["hits"])
    scored = Scored((-1.0,) * len(hits), hits, eos=True)
    assert extraction_strength(scored, OPEN_UNLEARNING) == pytest.approx(row["strength"], abs=1e-12)
    floor = 1 / (len(hits) - 1)
    corrected = 0 if not hits[-2] else row["strength"]
    assert extraction_strength(scored) == pytest.approx(corrected, abs=1e-12)
    assert row["strength"] >= floor - 1e-12


@pytest.mark.parametrize("row", ORACLES["peer_probability"])
def test_probability_of_the_peer(row: dict[str, Any]) -> None:
    scored = Scored(tuple(row["logp"]), (True,) * len(row["logp"]), eos=True)
    assert probability(scored, OPEN_UNLEARNING) == pytest.approx(row["prob"], abs=1e-5)
    assert probability(scored) != pytest.approx(row["prob"], abs=1e-3)  # without the EOS


@pytest.mark.parametrize("oracle", ORACLES["peer_utility"])
def test_model_utility_of_the_peer(oracle: dict[str, Any]) -> None:
    utility = model_utility(oracle["parts"])
    assert utility.value == pytest.approx(oracle["value"], rel=1e-12) and set(oracle["parts"]) == set(PARTS)
    assert stats.gmean(list(oracle["parts"].values())) != pytest.approx(oracle["value"], rel=0.1)
