"""What the table amounts to, in plain words. No removal is claimed: that takes attacks, which this version lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.records import AuditResult, ModelName, Verdict

BEHAVIOUR = (
    ("rouge_l_recall", "forget"), ("rouge_l_recall", "forget_paraphrased"),
    ("extraction_strength", "forget"), ("probability", "forget"),
)  # fmt: skip
TELLING = (("truth_probability", "forget"), ("option_probability", "forget"))
"""Whether true answers are still preferred to false ones: knowledge that shows in likelihoods, not in answers."""
UTILITY = (("rouge_l_recall", "retain"), ("extraction_strength", "retain"))
FEW_ENTITIES = 10
KNOWN, GONE, RUINED = 0.5, 0.2, 0.5


class Table:
    """Results by audit, split and model."""

    def __init__(self, results: Sequence[AuditResult]) -> None:
        self._by = {
            (r.audit, r.split, r.model): r for r in results if r.status == "ok" and r.value is not None
        }

    def get(self, audit: str, split: str, model: ModelName) -> AuditResult | None:
        """A result that is there and has a value."""
        return self._by.get((audit, split, model))

    def values(self, audit: str, split: str) -> tuple[float, float, float] | None:
        """Values of original, unlearned and control; None unless all three are there."""
        found = [self.get(audit, split, m) for m in ("original", "unlearned", "control")]
        known = [r.value for r in found if r is not None and r.value is not None]
        return (known[0], known[1], known[2]) if len(known) == 3 else None

    def standard_error(self, audit: str, split: str) -> float | None:
        """Standard error of original minus control, from their intervals; None when one has none."""
        spread = [self.get(audit, split, m) for m in ("original", "control")]
        halves = [
            (r.high - r.low) / 3.92
            for r in spread
            if r is not None and r.low is not None and r.high is not None
        ]
        return float(sum(h * h for h in halves) ** 0.5) if len(halves) == 2 else None


def recovery(table: Table, audit: str, split: str) -> float | None:
    """Recovery index (unlearned - control) / (original - control): 1 = knows as before, 0 = like the control, below
    0 = beyond it. Not clipped. None when original and control differ by less than three standard errors."""
    values, error = table.values(audit, split), table.standard_error(audit, split)
    if values is None or error is None:
        return None
    original, unlearned, control = values
    return None if abs(original - control) <= 3 * error else (unlearned - control) / (original - control)


def verdict(results: Sequence[AuditResult], intention: str) -> Verdict:
    """The verdict on a run, with the measurements that it rests on.

    The served surface is judged; what the held surface shows on top of it can only make the verdict worse.
    """
    served, held = ([r for r in results if r.surface == s] for s in ("served", "held"))
    judged = _judge(served or held, intention)
    found = Table(held if served else [])
    indices = {(a, s): r for a, s in BEHAVIOUR if (r := recovery(found, a, s)) is not None}
    if judged.name in ("destroyed", "not unlearned") or not indices or max(indices.values()) <= KNOWN:
        return judged
    evidence = tuple(f"{_evidence(found, a, s)} (held surface)" for a, s in indices)
    return Verdict(name="suppression", evidence=(*judged.evidence, *evidence), sentence=(
        f"{judged.sentence} But whoever holds the files gets it back: there the model keeps "
        f"{max(indices.values()):.0%} of the way from one that never knew to the original."))  # fmt: skip


def _judge(results: Sequence[AuditResult], intention: str) -> Verdict:
    table = Table(results)
    kept = _kept(table)
    indices = {(a, s): r for a, s in BEHAVIOUR if (r := recovery(table, a, s)) is not None}
    evidence = tuple(
        _evidence(table, a, s) for a, s in (*BEHAVIOUR, *TELLING, *UTILITY) if table.get(a, s, "unlearned")
    )
    if kept is not None and kept < RUINED:
        return Verdict(name="destroyed", evidence=evidence, sentence=(
            f"The model was damaged: on what should stay it keeps {kept:.0%} of the original's score. "
            "A low score on the forget set means nothing in a model that has lost everything."))  # fmt: skip
    if not indices:
        return Verdict(name="inconclusive", evidence=evidence, sentence=_why_nothing(table))
    worst = max(indices.values())
    anything = table.get("rouge_l_recall", "forget", "unlearned") or next(
        r for r in results if r.model == "unlearned" and r.split == "forget" and r.status == "ok"
    )
    if worst > KNOWN:
        return Verdict(name="not unlearned", evidence=evidence, sentence=(
            f"The model still shows what it was asked to forget: it keeps {worst:.0%} of the way from a model that "
            f"never knew (0%) to the original (100%).{_keeps(kept)}"))  # fmt: skip
    if anything.entities < FEW_ENTITIES:
        return Verdict(name="inconclusive", evidence=evidence, sentence=(
            f"Too few to tell: the forget set speaks of {anything.entities} "
            f"{'entity' if anything.entities == 1 else 'entities'}, fewer than the {FEW_ENTITIES} that intervals need. "
            "See the values and their intervals."))  # fmt: skip
    told = max((r for a, s in TELLING if (r := recovery(table, a, s)) is not None), default=0.0)
    if worst <= GONE and told > KNOWN:
        return Verdict(name="suppression", evidence=evidence, sentence=(
            "Asked plainly, the model gives away no more of the answers than one that never knew, but it still prefers "
            f"the true answers to false ones, by {told:.0%} of the way from such a model (0%) to the original (100%): "
            f"the knowledge is hidden, not gone.{_keeps(kept)}"))  # fmt: skip
    if max(worst, told) > GONE:
        return Verdict(name="mixed", evidence=evidence, sentence=(
            f"Part of it still shows: up to {max(worst, told):.0%} of the way from a model that never knew (0%) to the "
            f"original (100%).{_keeps(kept)}"))  # fmt: skip
    return Verdict(name="inconclusive", evidence=evidence, sentence=_quiet(_tells(table), kept, intention))


TELLS = (
    ("probability", "the probability of the forgotten answers"),
    ("truth_probability", "how it weighs true answers against false ones"),
    ("fluency", "how varied its answers are"), ("answer_words", "how many words it answers with"),
)  # fmt: skip


def _tells(table: Table) -> list[str]:
    """By what the unlearned model can be told from one that never knew: a KS test, intervals that do not meet."""
    found = []
    quality = table.get("forget_quality", "forget", "unlearned")
    if quality is not None and quality.value is not None and quality.value < 0.01:
        distance = quality.details.get("ks_distance", math.nan)
        found.append(f"how its truth ratios are spread (KS distance {distance:.2f}, p = {quality.value:.0e})")
    for audit, words in TELLS:
        ours, control = table.get(audit, "forget", "unlearned"), table.get(audit, "forget", "control")
        if ours and control and _apart(ours, control):
            found.append(f"{words} ({ours.value:.2g}, where that model has {control.value:.2g})")
    return found


def _apart(a: AuditResult, b: AuditResult) -> bool:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low > b.high or b.low > a.high


def _quiet(tells: list[str], kept: float | None, intention: str) -> str:
    """Plain questions find nothing: say what that does and does not mean."""
    hidden = (
        "The method teaches the model not to say it, so the knowledge is expected to be inside still."
        if intention == "suppression"
        else "Whether the knowledge is gone or only hidden was not tested."
    )
    told = f" It can still be told from such a model by {'; by '.join(tells)}." if tells else ""
    plain = "Asked plainly, the model gives away no more of the answers than one that never knew."
    return f"{plain}{told}{_keeps(kept)} {hidden}"


def _keeps(kept: float | None) -> str:
    return "" if kept is None else f" On what should stay it keeps {kept:.0%} of the original's score."


def _kept(table: Table) -> float | None:
    """The smallest share of the original's utility that the unlearned model has."""
    shares = []
    for audit, split in UTILITY:
        ours, theirs = table.get(audit, split, "unlearned"), table.get(audit, split, "original")
        if ours and theirs and ours.value is not None and theirs.value:
            shares.append(ours.value / theirs.value)
    return min(shares) if shares else None


def _why_nothing(table: Table) -> str:
    if any(table.get(a, s, "control") for a, s in BEHAVIOUR):
        return (
            "No judgement: the original and the control cannot be told apart on these rows, or there are too few of "
            "them, so there is nothing to measure forgetting against."
        )
    return (
        "No judgement: no control that never knew these rows stands beside the model, so there is nothing to compare "
        "it with."
    )


def _evidence(table: Table, audit: str, split: str) -> str:
    parts = []
    for model in ("original", "unlearned", "control"):
        result = table.get(audit, split, model)
        if result is not None and result.value is not None:
            parts.append(f"{model} {result.value:.3g}")
    return f"{audit} on {split}: {', '.join(parts)}"
