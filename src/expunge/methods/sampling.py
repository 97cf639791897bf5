"""Which rows each optimiser step sees: decided by the seed alone, never by processes, workers or batch layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """Positions of one step's rows, over all ranks."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]

    def of_rank(self, rank: int, size: int) -> Step:
        """This rank's share: ranks divide the rows among them, so that none is seen twice."""
        return Step(self.forget[rank::size], self.retain[rank::size])


def stream(rows: int, draws: int, seed: int, role: int) -> np.ndarray:
    """`draws` positions below `rows`: whole shuffled passes one after another, from a generator of the role's own."""
    rng = np.random.default_rng([seed, role])
    passes = [rng.permutation(rows) for _ in range(math.ceil(draws / rows))]
    return np.concatenate(passes)[:draws] if passes else np.zeros(0, dtype=np.int64)


def schedule(
    forget: int, retain: int, *, batch_size: int, epochs: int, steps: int | None, seed: int
) -> list[Step]:
    """The rows of every step. An epoch is a pass over the forget rows, or over retain when nothing is forgotten.

    Each step has `batch_size` rows of each role that has rows (fewer when the role has fewer rows).
    """
    per_forget, per_retain = min(batch_size, forget), min(batch_size, retain)
    driver, per_step = (forget, per_forget) if forget else (retain, per_retain)
    count = steps or math.ceil(epochs * driver / per_step)
    f = stream(forget, count * per_forget, seed, 0) if forget else np.zeros(0, dtype=np.int64)
    r = stream(retain, count * per_retain, seed, 1) if retain else np.zeros(0, dtype=np.int64)
    return [
        Step(
            tuple(f[i * per_forget : (i + 1) * per_forget].tolist()),
            tuple(r[i * per_retain : (i + 1) * per_retain].tolist()),
        )
        for i in range(count)
    ]
