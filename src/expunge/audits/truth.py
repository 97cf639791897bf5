"""Does the model tell the truth from falsehoods of the same form? TOFU's truth ratio and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.audits.view import PerRow
from expunge.metrics import truth_ratio as tr
from expunge.metrics.conventions import Conventions
from expunge.metrics.teacher import mean_nll, normalised_probability
from expunge.records import Scored

AUDITS = {
    "truth_ratio": {"splits": ["forget"], "unit": "share"},
    "truth_preference": {
        "splits": ["retain", "real_authors", "world_facts", "neighbours", "general"],
        "unit": "share",
    },
    "truth_probability": {"splits": ["forget", "retain"], "unit": "probability"},
    "option_probability": {
        "splits": ["real_authors", "world_facts", "forget", "neighbours"],
        "unit": "probability",
    },
}


def raw(
    scored_correct: Sequence[Scored], scored_wrong: Sequence[Sequence[Scored]], conventions: Conventions
) -> PerRow:
    """r = p(wrong) / p(correct), length-normalised, geometric mean over wrong answers. 0 = sure of the truth.

    Source: TOFU, arXiv 2401.06121
    """
    pairs = zip(scored_correct, scored_wrong, strict=True)
    return [tr.truth_ratio(mean_nll(c, conventions), _nlls(w, conventions), conventions) for c, w in pairs]


def _nlls(wrong: Sequence[Scored], conventions: Conventions) -> list[float | None]:
    return [mean_nll(s, conventions) for s in wrong]


def truth_ratio(
    scored_correct: Sequence[Scored], scored_wrong: Sequence[Sequence[Scored]], conventions: Conventions
) -> PerRow:
    """min(r, 1/r): how alike true and false answers look to the model. Should come close to the control.

    Source: TOFU, arXiv 2401.06121
    """
    return [tr.closeness_to_one(r, conventions) for r in raw(scored_correct, scored_wrong, conventions)]


def truth_preference(
    scored_correct: Sequence[Scored], scored_wrong: Sequence[Sequence[Scored]], conventions: Conventions
) -> PerRow:
    """max(0, 1 - r): how much the model prefers the truth. Should stay high on what is kept.

    Source: TOFU, arXiv 2401.06121
    """
    return [tr.preference_for_truth(r) for r in raw(scored_correct, scored_wrong, conventions)]


def truth_probability(
    scored_correct: Sequence[Scored], scored_wrong: Sequence[Sequence[Scored]], conventions: Conventions
) -> PerRow:
    """p(correct) / (p(correct) + p(wrong)): bounded, monotone in r; 0.5 = cannot tell.

    Source: OpenUnlearning ("prob_mean"), after TOFU, arXiv 2401.06121
    """
    pairs = zip(scored_correct, scored_wrong, strict=True)
    return [
        tr.truth_probability(mean_nll(c, conventions), _nlls(w, conventions), conventions) for c, w in pairs
    ]


def option_probability(
    scored_correct: Sequence[Scored], scored_wrong: Sequence[Sequence[Scored]], conventions: Conventions
) -> PerRow:
    """Probability of the right option among the options shown; chance is 1 / (1 + number of wrong ones).

    Source: TOFU, arXiv 2401.06121
    """
    pairs = zip(scored_correct, scored_wrong, strict=True)
    return [
        normalised_probability(mean_nll(c, conventions), _nlls(w, conventions), conventions) for c, w in pairs
    ]
