"""Audits of whole splits: perplexity, model utility, and forget quality against the control.

Each takes views and gives an interval; the engine measures them beside the row-by-row audits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from expunge.audits import memorise, truth
from expunge.audits.view import PerRow, View
from expunge.metrics.forget_quality import ForgetQuality
from expunge.metrics.forget_quality import forget_quality as ks_test
from expunge.metrics.statistics import Interval, bootstrap_means, percentiles
from expunge.metrics.teacher import perplexity as ppl
from expunge.metrics.teacher import scored_logp
from expunge.metrics.utility import SPLITS, model_utility, model_utility_interval
from expunge.records import Scored

AGGREGATES = {
    "perplexity": "perplexity per answer token on what is kept",
    "model_utility": "harmonic mean of probability, recall and truth preference on what is kept",
    "forget_quality": "are truth ratios distributed like the control's? (KS test)",
}


def entities(view: View, split: str) -> list[str]:
    """Whom each row of a split is about."""
    return [row.entity for row in view.splits[split].rows]


def perplexity(view: View, split: str) -> Interval:
    """exp of the mean token NLL over a whole split, with its interval over entities. Lower = better predicted."""
    scored: list[Scored] = view.offer(split, "scored")
    logp = [scored_logp(s, view.conventions) for s in scored]
    names = entities(view, split)
    sums = bootstrap_means([-sum(x) for x in logp], names)
    sizes = bootstrap_means([float(len(x)) for x in logp], names)
    value, groups = ppl(scored, view.conventions), len(set(names))
    if value is None or groups < 2:
        return Interval(value, None, None, len(logp), groups)
    return Interval(value, *percentiles(np.exp(sums / sizes), 0.95), len(logp), groups)


def raw_ratios(view: View, split: str) -> PerRow:
    """TOFU's r = p(wrong)/p(correct) of every row of a split."""
    return truth.raw(view.offer(split, "scored_correct"), view.offer(split, "scored_wrong"), view.conventions)


def forget_quality(view: View, control: View, split: str, control_split: str) -> ForgetQuality:
    """Whether truth ratios are distributed like the control's: KS distance with interval, and p.

    Source: TOFU, arXiv 2401.06121
    """
    return ks_test(
        raw_ratios(view, split),
        raw_ratios(control, control_split),
        entities(view, split),
        entities(control, control_split),
    )


def utility_parts(view: View) -> dict[str, PerRow]:
    """Per-row values of TOFU's nine parts, as far as the request has their splits and the rows what they need."""
    parts: dict[str, PerRow] = {}
    for split in (s for s in SPLITS if s in view.splits):
        offer = _Offer(view, split)
        option = split != "retain"
        parts[f"{split}_probability"] = offer(truth.option_probability if option else memorise.probability)
        parts[f"{split}_rouge_l_recall"] = offer(memorise.rouge_l_recall)
        parts[f"{split}_truth_ratio"] = offer(truth.truth_preference)
    return {name: values for name, values in parts.items() if any(v is not None for v in values)}


class _Offer:
    """Calls an audit's function with what a view offers for one split."""

    def __init__(self, view: View, split: str) -> None:
        self.view, self.split = view, split

    def __call__(self, function: Any) -> PerRow:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        self.view.require(names, "audit 'model_utility'")
        values: PerRow = function(**{name: self.view.offer(self.split, name) for name in names})
        return values


def utility(view: View) -> tuple[Interval, tuple[str, ...], tuple[str, ...]]:
    """Model utility with its interval, and the parts that it rests on and lacks.

    Source: TOFU, arXiv 2401.06121
    """
    parts = utility_parts(view)
    names = {split: entities(view, split) for split in SPLITS if split in view.splits}
    interval = model_utility_interval(parts, names)
    found = model_utility({name: _mean(values) for name, values in parts.items()})
    return interval, found.used, found.missing


def _mean(values: PerRow) -> float | None:
    counted = [v for v in values if v is not None]
    return sum(counted) / len(counted) if counted else None
