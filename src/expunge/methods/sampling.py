"""Which rows each optimiser step sees: decided by the seed alone, never by processes, workers or batch layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from expunge.records import UsageError


class Step(NamedTuple):
    """Positions of one step's rows, over all ranks."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]

    def of_rank(self, rank: int, size: int) -> Step:
        """This rank's share: ranks divide the rows among them, so that none is seen twice."""
        return Step(self.forget[rank::size], self.retain[rank::size])


def stream(rows: int, draws: int, seed: int, role: int, per_step: int = 1) -> np.ndarray:
    """`draws` positions below `rows`: whole shuffled passes one after another, from a generator of the role's own.

    No step of `per_step` draws holds a row twice: where a pass ends within a step, the next one begins with other rows.
    """
    rng = np.random.default_rng([seed, role])
    out = np.zeros(0, dtype=np.int64)
    while len(out) < draws:
        begun = len(out) % per_step
        out = np.concatenate(
            [out, _without(rng.permutation(rows), out[len(out) - begun :], per_step - begun)]
        )
    return out[:draws]


def _without(shuffled: np.ndarray, taken: np.ndarray, first: int) -> np.ndarray:
    """The same rows with none of `taken` among the `first` ones."""
    if not len(taken):
        return shuffled
    fresh = shuffled[~np.isin(shuffled, taken)][:first]
    return np.concatenate([fresh, shuffled[~np.isin(shuffled, fresh)]])


def schedule(
    forget: int, retain: int, *, batch_size: int, epochs: int, steps: int | None, seed: int
) -> list[Step]:
    """The rows of every step. An epoch is a pass over the forget rows, or over retain when nothing is forgotten.

    Each step has `batch_size` rows of each role that has rows (fewer when the role has fewer rows), none of them twice.
    Raises UsageError when there are no rows at all.
    """
    per_forget, per_retain = min(batch_size, forget), min(batch_size, retain)
    driver, per_step = (forget, per_forget) if forget else (retain, per_retain)
    if not per_step:
        raise UsageError("there are no rows to train on: neither the forget nor the retain split has any.")
    count = steps or math.ceil(epochs * driver / per_step)
    f = stream(forget, count * per_forget, seed, 0, per_forget) if forget else np.zeros(0, dtype=np.int64)
    r = stream(retain, count * per_retain, seed, 1, per_retain) if retain else np.zeros(0, dtype=np.int64)
    return [
        Step(
            tuple(f[i * per_forget : (i + 1) * per_forget].tolist()),
            tuple(r[i * per_retain : (i + 1) * per_retain].tolist()),
        )
        for i in range(count)
    ]
