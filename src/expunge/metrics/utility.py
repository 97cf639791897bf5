"""TOFU's model utility: one number for everything that the model should still know."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from expunge.metrics.statistics import (
    Interval,
    Values,
    bootstrap_means,
    counted,
    harmonic_mean,
    mean,
    percentiles,
)
from expunge.records import nearest

SPLITS = ("retain", "real_authors", "world_facts")
METRICS = ("probability", "rouge_l_recall", "truth_ratio")
PARTS = tuple(f"{split}_{metric}" for split in SPLITS for metric in METRICS)


class Utility(NamedTuple):
    """Harmonic mean of the parts there are, in [0, 1]; higher = keeps more; 0 as soon as one part is 0.

    used, missing: which of the nine parts it rests on. Compare values only where `missing` is the same.
    """

    value: float | None
    used: tuple[str, ...]
    missing: tuple[str, ...]


def _checked(names: Sequence[str]) -> None:
    for name in names:
        if name not in PARTS:
            raise ValueError(f"model utility has no part {name!r}.{nearest(name, PARTS)}")


def model_utility(parts: Mapping[str, float | None]) -> Utility:
    """Harmonic mean of TOFU's nine: probability, ROUGE-L recall, truth ratio on retain, real authors, world
    facts.

    parts: means by name (see PARTS); one that is absent, None or NaN is named as missing and left out.
    Probability is option-normalised on real authors and world facts; truth ratio is the mean of max(0, 1 -
    r). Raises ValueError for an unknown name or a negative part. Source: TOFU (arXiv 2401.06121).
    """
    _checked(tuple(parts))
    used = tuple(part for part in PARTS if counted([parts.get(part)]).size)
    missing = tuple(part for part in PARTS if part not in used)
    return Utility(harmonic_mean([parts[part] for part in used]), used, missing)


def _split_of(part: str) -> str:
    return next(split for split in SPLITS if part.startswith(split))


def model_utility_interval(
    rows: Mapping[str, Values],
    entities: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    n_boot: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Model utility from its parts' per-row values, with an interval over entities.

    rows: part -> per-row values; entities: split -> one name per row. The parts of a split are resampled
    together, the splits independently. n and entities count over the splits.
    """
    utility = model_utility({part: mean(values) for part, values in rows.items()})
    splits = {_split_of(part): part for part in utility.used}
    n = sum(counted(rows[part]).size for part in splits.values())
    groups = {split: len({e or str(i) for i, e in enumerate(entities[split])}) for split in splits}
    if utility.value is None or min(groups.values()) < 2:
        return Interval(utility.value, None, None, n, sum(groups.values()))
    replicates = np.stack(
        [
            bootstrap_means(
                rows[part],
                entities[_split_of(part)],
                seed=(seed, zlib.crc32(_split_of(part).encode())),
                n_boot=n_boot,
            )
            for part in utility.used
        ]
    )
    return Interval(
        utility.value, *percentiles(stats.hmean(replicates, axis=0), level), n, sum(groups.values())
    )
