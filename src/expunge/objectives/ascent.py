"""Gradient ascent and what is built on it: raise the loss on the forget set.

Limit: the gradient of log p grows as 1/p, so ascent is unbounded; without a retain term it destroys the model.
Source: Jang et al. 2023 (arXiv 2210.01504); Maini et al. 2024, TOFU (arXiv 2401.06121).
"""

from __future__ import annotations

from expunge.tasks.quantities import Tokens

METHODS = {
    "ga": {
        "line": "gradient ascent on the forget set, nothing else",
        "roles": {"forget": "ascent"},
        "citation": "Jang et al. 2023, arXiv 2210.01504",
    },
    "graddiff": {
        "line": "gradient ascent on forget, descent on retain",
        "roles": {"forget": "ascent", "retain": "nll"},
        "citation": "Maini et al. 2024, arXiv 2401.06121",
    },
    "kl": {
        "line": "gradient ascent on forget, KL to the original on retain",
        "roles": {"forget": "ascent", "retain": "kl"},
        "citation": "Maini et al. 2024, arXiv 2401.06121",
    },
}


def ascent(token_logp: Tokens) -> Tokens:
    """Gradient ascent: minimise log p of every forget token.

    L = mean over tokens of log p(y_t | x, y_<t).  Unbounded below.
    Source: Jang et al. 2023, arXiv 2210.01504
    """
    return token_logp
