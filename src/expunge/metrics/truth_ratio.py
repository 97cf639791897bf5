"""TOFU's truth ratio, from mean NLLs (nats per token) of right and wrong answers.

Which answer is "right" is the caller's: TOFU takes the paraphrase on forget and retain rows, the plain answer
on real authors and world facts. The three per-row scores below are averaged by `statistics.mean` or
`entity_bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.metrics.conventions import CORRECTED, Conventions
from expunge.metrics.statistics import mean
from expunge.metrics.teacher import exp, normalised_probability


def truth_ratio(
    correct_nll: float | None, wrong_nlls: Sequence[float | None], conventions: Conventions = CORRECTED
) -> float | None:
    """r = p_wrong / p_correct = exp(a_correct - mean_j a_wrong_j), a = mean NLL: the geometric mean over
    wrong answers.

    In [0, ∞]. 0 = sure of the truth, 1 = cannot tell it from falsehoods, above 1 = prefers falsehoods. On the
    forget split the aim is the control's distribution of r, not a value. None without a right or a wrong
    answer's NLL.

    Source: TOFU (arXiv 2401.06121).
    """
    wrong = mean(wrong_nlls)
    if correct_nll is None or wrong is None:
        return None
    ratio = exp(correct_nll - wrong)  # never forms the tiny probabilities
    if conventions.epsilon:
        ratio = exp(-wrong) / (exp(-correct_nll) + conventions.epsilon)
    return None if math.isnan(ratio) else ratio


def closeness_to_one(ratio: float | None, conventions: Conventions = CORRECTED) -> float | None:
    """min(r, 1/r) in [0, 1], TOFU's score on the forget split; higher = true and false answers look alike.

    Blind to the side: a model that prefers falsehoods scores like one that prefers the truth.
    """
    if ratio is None:
        return None
    inverse = 1 / (ratio + conventions.epsilon) if ratio + conventions.epsilon > 0 else math.inf
    return min(ratio, inverse)


def preference_for_truth(ratio: float | None) -> float | None:
    """max(0, 1 - r) in [0, 1], TOFU's score on the splits to keep; higher = knows better."""
    return None if ratio is None else max(0.0, 1 - ratio)


def truth_probability(
    correct_nll: float | None, wrong_nlls: Sequence[float | None], conventions: Conventions = CORRECTED
) -> float | None:
    """p_c / (p_c + p_w) in [0, 1] with p_w the geometric mean, that is 1/(1 + r): OpenUnlearning's
    "prob_mean".

    Higher = knows better; 0.5 = cannot tell. Bounded and monotone in r, so it has neither of the other two's
    faults.
    """
    return normalised_probability(correct_nll, [mean(wrong_nlls)], conventions)
