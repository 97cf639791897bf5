"""What OpenUnlearning prints for a tiny model: everything that is arithmetic on its own per-row values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.metrics.conventions import CORRECTED, OPEN_UNLEARNING
from expunge.metrics.forget_quality import forget_quality
from expunge.metrics.statistics import mean
from expunge.metrics.teacher import extraction_strength, normalised_probability, probability
from expunge.metrics.text import rouge
from expunge.metrics.truth_ratio import closeness_to_one, preference_for_truth, truth_ratio
from expunge.metrics.utility import model_utility
from expunge.records import Scored

Shared = Callable[[str], Path]
MODELS = ["full", "retain90"]
SPLITS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
RATIO = {
    "forget": "forget_truth_ratio",
    "retain": "retain_Truth_Ratio",
    "ra": "ra_Truth_Ratio",
    "wf": "wf_Truth_Ratio",
}
RIGHT = {"forget": "Q_A_PARA_Prob", "retain": "Q_A_PARA_Prob", "ra": "Q_A_Prob", "wf": "Q_A_Prob"}


def printed(shared: Shared, model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (shared("peer_metrics") / f"tofu_tiny_{model}.json").read_text(encoding="utf-8")
    )
    return found


def column(metric: dict[str, Any], name: str) -> list[Any]:
    return [row[name] for row in metric["value_by_index"].values()]


def recomputed_ratios(peer: dict[str, Any], split: str) -> list[float | None]:
    right = column(peer[f"{split}_{RIGHT[split]}"], "avg_loss")
    wrong = column(peer[f"{split}_Q_A_PERT_Prob"], "avg_loss")
    return [truth_ratio(a, b, OPEN_UNLEARNING) for a, b in zip(right, wrong, strict=True)]


def recomputed_options(peer: dict[str, Any], split: str) -> list[float | None]:
    right = column(peer[f"{split}_Q_A_Prob"], "avg_loss")
    wrong = column(peer[f"{split}_Q_A_PERT_Prob"], "avg_loss")
    return [normalised_probability(a, b, OPEN_UNLEARNING) for a, b in zip(right, wrong, strict=True)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("split", SPLITS)
def test_truth_ratios(shared: Shared, model: str, split: str) -> None:
    peer = printed(shared, model)
    ratios = recomputed_ratios(peer, split)
    assert ratios == pytest.approx(column(peer[RATIO[split]], "score"), rel=1e-9)
    scores = [
        closeness_to_one(r, OPEN_UNLEARNING) if split == "forget" else preference_for_truth(r) for r in ratios
    ]
    assert mean(scores) == pytest.approx(peer[RATIO[split]]["agg_value"], abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("split", ["ra", "wf"])
def test_option_probabilities(shared: Shared, model: str, split: str) -> None:
    peer = printed(shared, model)
    found, metric = recomputed_options(peer, split), peer[f"{split}_Q_A_Prob_normalised"]
    assert found == pytest.approx(column(metric, "prob"), rel=1e-6)
    assert mean(found) == pytest.approx(metric["agg_value"], abs=1e-8)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("split", SPLITS)
def test_probabilities_and_their_means(shared: Shared, model: str, split: str) -> None:
    """p = exp(-mean NLL) row by row; the mean over answers, then over rows."""
    peer = printed(shared, model)
    for name in ("Q_A_Prob", "Q_A_PERT_Prob", "Q_A_PARA_Prob"):
        if metric := peer.get(f"{split}_{name}"):
            p, nll = (np.array(column(metric, which)) for which in ("prob", "avg_loss"))
            assert p == pytest.approx(np.exp(-nll), rel=1e-6)
            assert mean(p.reshape(len(p), -1).mean(1)) == pytest.approx(metric["agg_value"], abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("split", SPLITS)
def test_rouge_of_the_logged_generations(shared: Shared, model: str, split: str) -> None:
    metric = printed(shared, model)[f"{split}_Q_A_ROUGE"]
    found = []
    for row in metric["value_by_index"].values():
        scores = rouge(row["ground_truth"], row["generation"], OPEN_UNLEARNING)
        assert scores is not None and scores == rouge(row["ground_truth"], row["generation"], CORRECTED)
        assert scores.rouge_1_recall == pytest.approx(row["rouge1_recall"], abs=1e-12)
        assert scores.rouge_l_recall == pytest.approx(row["rougeL_recall"], abs=1e-12)
        assert scores.rouge_l_f1 == pytest.approx(row["rougeL_f1"], abs=1e-12)
        found.append(scores.rouge_l_recall)
    assert mean(found) == pytest.approx(metric["agg_value"], abs=1e-9)


def test_forget_quality(shared: Shared) -> None:
    full, retain = (printed(shared, model) for model in MODELS)
    people = [str(i // 20) for i in range(400)]
    found = forget_quality(recomputed_ratios(full, "forget"), recomputed_ratios(retain, "forget"), people)
    assert found.p == pytest.approx(full["forget_quality"]["agg_value"], rel=1e-9)
    assert retain["forget_quality"]["agg_value"] is None  # no control was given: no value, as with us
    null = forget_quality(recomputed_ratios(retain, "forget"), recomputed_ratios(retain, "forget"), people)
    assert null.p == 1


@pytest.mark.parametrize("model", MODELS)
def test_model_utility(shared: Shared, model: str) -> None:
    """From per-row values upward, so every convention on the way is in it."""
    peer = printed(shared, model)
    parts: dict[str, float | None] = {}
    for split, ours in list(SPLITS.items())[1:]:
        options = split != "retain"
        parts[f"{ours}_probability"] = mean(
            recomputed_options(peer, split) if options else column(peer["retain_Q_A_Prob"], "prob")
        )
        parts[f"{ours}_rouge_l_recall"] = mean(column(peer[f"{split}_Q_A_ROUGE"], "rougeL_recall"))
        parts[f"{ours}_truth_ratio"] = mean(map(preference_for_truth, recomputed_ratios(peer, split)))
    utility = model_utility(parts)
    assert utility.missing == ()
    assert utility.value == pytest.approx(peer["model_utility"]["agg_value"], abs=1e-9)


def one_pass(folder: Path, questions: list[dict[str, Any]]) -> list[Scored]:
    """A plain teacher-forced pass, row by row, with the template that SOURCE.txt names."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for row in questions:
        prompt = f"Question: {row['question']}\nAnswer:\n"
        start, ids = len(tokenizer(prompt).input_ids), tokenizer(prompt + row["answer"]).input_ids
        ids = torch.tensor([[*ids, 2]])
        with torch.no_grad():
            logp = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        target = ids[0, start:]
        token_logp = logp.gather(1, target[:, None])[:, 0]
        found.append(
            Scored(tuple(token_logp.tolist()), tuple((logp.argmax(-1) == target).tolist()), eos=True)
        )
    return found


@pytest.mark.parametrize("model", MODELS)
def test_extraction_strength_and_probability_from_a_pass(shared: Shared, model: str) -> None:
    """The log has no hits, so the model makes them: 60 rows exactly; the corrected default is another
    number."""
    peer = printed(shared, model)
    with (shared("tofu") / "forget10_perturbed.json").open(encoding="utf-8") as lines:
        questions = [json.loads(line) for line, _ in zip(lines, range(60), strict=False)]
    scored = one_pass(shared(f"models/tofu-tiny/{model}"), questions)
    strength = column(peer["extraction_strength"], "score")[:60]
    assert [extraction_strength(s, OPEN_UNLEARNING) for s in scored] == pytest.approx(strength, abs=1e-12)
    p = column(peer["forget_Q_A_Prob"], "prob")[:60]
    assert [probability(s, OPEN_UNLEARNING) for s in scored] == pytest.approx(p, abs=1e-4)
    assert (mean(map(extraction_strength, scored)) or 0) < (mean(strength) or 0)
