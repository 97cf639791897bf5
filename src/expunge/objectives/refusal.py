"""Teach refusals in the forget answers' place. The knowledge stays; only the answer changes: suppression by design.

Source: Maini et al. 2024, TOFU (arXiv 2401.06121), the "IDK" baseline.
"""

from __future__ import annotations

import random
from typing import Any

from expunge.data.refusals import REFUSALS
from expunge.data.request import ForgetRequest

METHODS = {
    "idk": {
        "line": "answer forget questions with a refusal, likelihood on retain",
        "roles": {"alternative": "nll", "retain": "nll"},
        "intention": "suppression",
        "citation": "Maini et al. 2024, arXiv 2401.06121",
    },
}


def prepare(handle: Any, request: ForgetRequest, *, seed: int) -> ForgetRequest:
    """The request with a refusal as the alternative answer of every forget row that brings none."""
    rng = random.Random(seed)
    rows = [
        r if r.alternative else r.model_copy(update={"alternative": rng.choice(REFUSALS)})
        for r in request.forget
    ]
    return request.replace(forget=tuple(rows))
