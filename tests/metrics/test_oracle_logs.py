"""TOFU's own evaluation logs of Llama-2-7B and Phi-1.5: every logged row recomputed, and the published
headline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.metrics.forget_quality import forget_quality
from expunge.metrics.statistics import ks, mean
from expunge.metrics.teacher import normalised_probability
from expunge.metrics.text import rouge
from expunge.metrics.truth_ratio import truth_ratio

Shared = Callable[[str], Path]
Log = dict[str, dict[str, Any]]
RUNS = {"llama": "ft_epoch5_lr1e-05_llama2-7b_{}_wd0.01", "phi": "ft_epoch5_lr2e-05_phi_{}_wd0.01"}
SPLITS = [
    "eval_log.json",
    "eval_log_forget.json",
    "eval_real_author_wo_options.json",
    "eval_real_world_wo_options.json",
]
MODELS = ["full", "retain90", "retain95", "retain99"]


def log(shared: Shared, model: str, trained_on: str) -> dict[str, Log]:
    folder = shared("tofu_reference_logs") / RUNS[model].format(trained_on)
    found: dict[str, Log] = json.loads((folder / "eval_log_aggregated.json").read_text(encoding="utf-8"))
    return found


def ratios(split: Log, key: Callable[[str], str] = str) -> dict[str, float | None]:
    right, wrong = split["avg_paraphrased_loss"], split["average_perturb_loss"]
    return {key(k): truth_ratio(right[k], wrong[k]) for k in right}


@pytest.mark.parametrize("model", RUNS)
@pytest.mark.parametrize("trained_on", MODELS)
def test_every_row_of_every_log(shared: Shared, model: str, trained_on: str) -> None:
    """Truth ratio, option-normalised probability and ROUGE from the losses and texts that were logged."""
    logs, rows = log(shared, model, trained_on), 0
    for split in (logs[name] for name in SPLITS):
        for k, ratio in ratios(split).items():
            assert ratio == pytest.approx(split["truth_ratio"][k], rel=2e-6)
        for k, logged in split.get("normalized_gt_loss", {}).items():
            found = normalised_probability(split["avg_gt_loss"][k], split["average_perturb_loss"][k])
            assert found is not None and -math.log(found) == pytest.approx(logged, rel=1e-6)
        for k, (_, output, reference) in split["generated_text"].items():
            scores = rouge(reference, output)
            assert scores is not None
            assert scores.rouge_l_recall == pytest.approx(split["rougeL_recall"][k], abs=1e-12)
            assert scores.rouge_1_recall == pytest.approx(split["rouge1_recall"][k], abs=1e-12)
            rows += 1
    assert rows >= 517 + 40


@pytest.mark.parametrize(("trained_on", "recall"), [("full", 0.985), ("retain90", 0.408)])
def test_headline_rouge_of_llama(shared: Shared, trained_on: str, recall: float) -> None:
    texts = log(shared, "llama", trained_on)["eval_log_forget.json"]["generated_text"].values()
    scores = [rouge(reference, output) for _, output, reference in texts]
    assert mean([s.rouge_l_recall for s in scores if s]) == pytest.approx(recall, abs=5e-4)


@pytest.mark.parametrize(("model", "p"), [("llama", 1.8e-21), ("phi", 2.2e-16)])
def test_headline_forget_quality(shared: Shared, model: str, p: float) -> None:
    full, retain = (log(shared, model, on)["eval_log_forget.json"] for on in ("full", "retain90"))
    a, b = ratios(full), ratios(retain)
    both = [k for k in a if k in b]
    found = forget_quality([a[k] for k in both], [b[k] for k in both], [str(int(k) // 20) for k in both])
    assert len(both) == 300 and found.distance.entities == 15
    assert found.p == pytest.approx(p, rel=0.02)
    assert found.distance.value == pytest.approx({"llama": 0.397, "phi": 0.347}[model], abs=5e-4)
    assert found.distance.low is not None and found.distance.low > 0.1


@pytest.mark.parametrize("model", RUNS)
def test_arithmetic_means_over_wrong_answers_give_another_p(shared: Shared, model: str) -> None:
    full, retain = (log(shared, model, on)["eval_log_forget.json"] for on in ("full", "retain90"))

    def arithmetic(split: Log) -> list[float]:
        right, wrong = split["avg_paraphrased_loss"], split["average_perturb_loss"]
        return [float(np.exp(-np.array(wrong[k])).mean() * np.exp(right[k])) for k in right]

    good = ks([*ratios(full).values()], [*ratios(retain).values()])
    bad = ks(arithmetic(full), arithmetic(retain))
    assert good is not None and bad is not None and bad.p < good.p / 5


@pytest.mark.parametrize("model", RUNS)
def test_the_original_fails_on_smaller_splits_too_when_rows_are_joined_by_question(
    shared: Shared, model: str
) -> None:
    """The logs' keys are positions within each split, so key 0 of forget05 is not key 0 of forget10: join by
    text."""
    full, retain = (log(shared, model, on)["eval_log_forget.json"] for on in ("full", "retain95"))
    a, b = (
        ratios(split, lambda k, split=split: split["generated_text"][k][0])  # type: ignore[misc]
        for split in (full, retain)
    )
    both = [question for question in a if question in b]
    assert len(both) == 100
    found = ks([a[q] for q in both], [b[q] for q in both])
    assert found is not None and found.p < 1e-4
    keys = set(full["truth_ratio"]) & set(retain["truth_ratio"])
    assert all(full["generated_text"][k][0] != retain["generated_text"][k][0] for k in keys)


@pytest.mark.parametrize("model", RUNS)
def test_a_model_that_never_knew_is_null_against_another(shared: Shared, model: str) -> None:
    """retain90 and retain95 both never saw the last 200 rows; only their seeds' worth of training differs."""
    first, second = (log(shared, model, on)["eval_log_forget.json"] for on in ("retain90", "retain95"))
    a, b = (
        ratios(split, lambda k, split=split: split["generated_text"][k][0])  # type: ignore[misc]
        for split in (first, second)
    )
    both = [question for question in a if question in b]
    found = forget_quality(
        [a[q] for q in both], [b[q] for q in both], [str(i // 20) for i in range(len(both))]
    )
    assert found.p is not None and found.p > 0.3
    assert found.distance.low == 0
