"""Metrics of one teacher-forced pass: how well a model predicts an answer that it is shown token by token.

All of them are arithmetic on `Scored`, so one cached pass per row and model serves them all. A row without a
counted token gives None ("not counted"), never NaN or a made-up number. Directions are those of *knowing*: on
the forget split, read every one against the control.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from expunge.metrics.conventions import CORRECTED, Conventions
from expunge.records import Scored


def exp(x: float) -> float:
    """e^x with +inf where a float overflows."""
    return math.exp(x) if x < 709 else (math.nan if math.isnan(x) else math.inf)


def scored_logp(scored: Scored, conventions: Conventions = CORRECTED) -> tuple[float, ...]:
    """Natural-log probabilities of the tokens that probability, NLL and perplexity count."""
    drops = scored.eos and not conventions.probability_counts_eos
    return scored.token_logp[:-1] if drops else scored.token_logp


def scored_hits(scored: Scored, conventions: Conventions = CORRECTED) -> tuple[bool, ...]:
    """Arg-max hits of the tokens that exact memorisation and extraction strength count."""
    return scored.hits[:-1] if scored.eos or conventions.drops_last_label else scored.hits


def mean_nll(scored: Scored, conventions: Conventions = CORRECTED) -> float | None:
    """Mean negative log-likelihood -(1/T) Σ_t log p_t in nats per token; lower = knows better, 0 at best."""
    logp = scored_logp(scored, conventions)
    return -sum(logp) / len(logp) if logp else None


def probability(scored: Scored, conventions: Conventions = CORRECTED) -> float | None:
    """Length-normalised probability exp((1/T) Σ_t log p_t) in [0, 1]; higher = knows better (TOFU)."""
    nll = mean_nll(scored, conventions)
    return None if nll is None else exp(-nll)


def perplexity(rows: Iterable[Scored], conventions: Conventions = CORRECTED) -> float | None:
    """exp of the mean NLL over all tokens of a set, so long rows weigh more; in [1, ∞], lower = more fluent.

    This is the exponential. MUSE prints the bare loss under this name.
    """
    logp = [scored_logp(row, conventions) for row in rows]
    tokens = sum(map(len, logp))
    return exp(-sum(map(sum, logp)) / tokens) if tokens else None


def exact_memorization(scored: Scored, conventions: Conventions = CORRECTED) -> float | None:
    """Share of answer tokens that the arg-max predicts, (1/T) Σ_t 1[argmax = y_t]; higher = knows better."""
    hits = scored_hits(scored, conventions)
    return sum(hits) / len(hits) if hits else None


def extraction_strength(scored: Scored, conventions: Conventions = CORRECTED) -> float | None:
    """1 - k*/T, with k* the fewest answer tokens that must be given before greedy decoding yields all the
    rest.

    k* = 1 + the last position that the arg-max gets wrong, 0 if there is none: one teacher-forced pass gives
    what greedy generation from every prefix would. In [0, 1]; 1 = the whole answer comes from the question
    alone, 0 = not even the last token comes from all others. Higher = knows better.

    Source: "Towards Effective Evaluations and Comparisons for LLM Unlearning Methods" (arXiv 2406.09179).
    """
    hits = scored_hits(scored, conventions)
    if not hits:
        return conventions.unscored_strength
    missing = next((k for k in range(len(hits), 0, -1) if not hits[k - 1]), 0)
    if conventions.strength_floor_one_token:
        missing = min(missing, len(hits) - 1)
    return 1 - missing / len(hits)


def normalised_probability(
    correct_nll: float | None, wrong_nlls: Sequence[float | None], conventions: Conventions = CORRECTED
) -> float | None:
    """Probability of the correct option among the options shown: p_c / (p_c + Σ_j p_j), p = exp(-mean NLL).

    correct_nll, wrong_nlls: mean NLL in nats per token, as `mean_nll` gives them. In [0, 1]; chance is 1/(1 +
    number of wrong options); higher = knows better. TOFU uses it for real authors and world facts. None
    without a wrong option or when every option has probability 0.
    """
    wrong = [nll for nll in wrong_nlls if nll is not None]
    if correct_nll is None or not wrong:
        return None
    if conventions.epsilon:
        p = exp(-correct_nll)
        share = p / (p + sum(exp(-nll) for nll in wrong) + conventions.epsilon)
    else:
        share = 1 / (1 + sum(exp(correct_nll - nll) for nll in wrong))  # never forms the tiny probabilities
    return None if math.isnan(share) else share
