"""TOFU's forget quality: are the unlearned model's truth ratios those of a control that never knew?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.metrics.statistics import FloatArray, IntArray, Interval, Values, as_array, draws, ks, named


class ForgetQuality(NamedTuple):
    """How far the unlearned model's truth ratios are from the control's.

    p: TOFU's forget quality, the KS test's p-value in [0, 1]; higher = not told apart. It shrinks with the
    number of rows, counts rows as independent, and has no interval; papers plot its log10. None when a side
    has no row. distance: the KS distance D in [0, 1] with its entity-bootstrap interval, which has none of
    these faults; lower = closer to the control. Its `n` counts the rows of the unlearned model.
    """

    p: float | None
    distance: Interval


class _Sample(NamedTuple):
    """Values that count, (n,), and the number of each one's entity, (n,)."""

    values: FloatArray
    codes: IntArray


def _samples(
    values: Values, control: Values, entities: Sequence[str], control_entities: Sequence[str] | None
) -> tuple[_Sample, _Sample, int]:
    """Both samples without the rows that do not count, entities numbered alike, and how many of these."""
    own = named(entities)
    other = own if control_entities is None else named(control_entities, "control")
    if (len(own), len(other)) != (len(values), len(control)):
        raise ValueError("give one entity per row, the control's too when it has other rows")
    names_a, names_b = np.array(own, dtype=np.str_), np.array(other, dtype=np.str_)
    a, b = as_array(values), as_array(control)
    keep_a, keep_b = ~np.isnan(a), ~np.isnan(b)
    everyone, codes = np.unique(np.concatenate([names_a[keep_a], names_b[keep_b]]), return_inverse=True)
    split = int(keep_a.sum())
    return _Sample(a[keep_a], codes[:split]), _Sample(b[keep_b], codes[split:]), len(everyone)


def _shares(times: FloatArray, codes: IntArray) -> FloatArray:
    """Weight (B, n) of every row in resamples in which its entity came up `times` (B, entities) times."""
    weights: FloatArray = times[:, codes]
    shares: FloatArray = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _deviations(a: _Sample, b: _Sample, groups: int, n_boot: int, seed: int) -> FloatArray:
    """sup |(F_a - F_b)* - (F_a - F_b)| of resamples in which an entity enters or leaves both samples."""
    places = np.concatenate([a.values, b.values])
    order = np.argsort(places, kind="stable")
    ends = np.append(places[order][1:] != places[order][:-1], True)  # ties step together
    once = np.hstack([np.full(len(a.values), 1 / len(a.values)), np.full(len(b.values), -1 / len(b.values))])
    found = []
    for block in draws(groups, n_boot, seed, width=len(places)):
        times = np.stack([np.bincount(row, minlength=groups) for row in block]).astype(np.float64)
        usable = times[(times[:, a.codes].any(axis=1)) & (times[:, b.codes].any(axis=1))]
        steps = np.hstack([_shares(usable, a.codes), -_shares(usable, b.codes)]) - once
        found.append(np.abs(np.cumsum(steps[:, order], axis=1)[:, ends]).max(axis=1, initial=0.0))
    return np.concatenate(found)


def forget_quality(
    ratios: Values,
    control: Values,
    entities: Sequence[str],
    control_entities: Sequence[str] | None = None,
    *,
    seed: int = 0,
    n_boot: int = 1000,
    level: float = 0.95,
) -> ForgetQuality:
    """KS test between the truth ratios of the unlearned model and of the control, with an interval for D.

    ratios, control: r per row, None where not counted; only their order matters, so any monotone transform
    gives the same. entities: one name per row of `ratios`, and of `control` too unless `control_entities`
    says otherwise.

    The interval is D ± q, q the level's quantile of the resampled sup-norm deviation, cut to [0, 1]. A
    percentile interval would be wrong here: a distance is positive by chance alone, resampling adds more of
    it, and "no difference" would never be inside. This one covers it, and is a little wide when D is large.
    """
    a, b, groups = _samples(ratios, control, entities, control_entities)
    test = ks(ratios, control)
    if test is None:
        return ForgetQuality(None, Interval(None, None, None, len(a.values), groups))
    if groups < 2:
        return ForgetQuality(test.p, Interval(test.distance, None, None, len(a.values), groups))
    q = float(np.quantile(_deviations(a, b, groups, n_boot, seed), level))
    low, high = max(0.0, test.distance - q), min(1.0, test.distance + q)
    return ForgetQuality(test.p, Interval(test.distance, low, high, len(a.values), groups))
