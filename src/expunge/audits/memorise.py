"""Does the model still produce or predict the answers? Row by row, on every split that has what is needed."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.audits.view import PerRow
from expunge.metrics import teacher
from expunge.metrics.conventions import Conventions
from expunge.metrics.text import rouge
from expunge.records import Row, Scored

AUDITS = {
    "rouge_l_recall": {"splits": ["*"], "unit": "share"},
    "probability": {"splits": ["*"], "unit": "probability"},
    "extraction_strength": {"splits": ["*"], "unit": "share"},
    "exact_memorization": {"splits": ["forget", "retain"], "unit": "share"},
    "knowledge_rouge": {"splits": ["forget", "retain"], "unit": "share", "field": "question"},
    "verbatim_rouge": {"splits": ["forget", "retain"], "unit": "share", "field": "text"},
}


def rouge_l_recall(answers: Sequence[str], references: Sequence[str], conventions: Conventions) -> PerRow:
    """Share of the reference's words that the greedy answer has, in order. 1 = tells everything.

    Source: Lin 2004 (ROUGE-L, recall), as used by TOFU, arXiv 2401.06121
    """
    found = [rouge(r, a, conventions) for r, a in zip(references, answers, strict=True)]
    return [f.rouge_l_recall if f else None for f in found]


def knowledge_rouge(
    rows: Sequence[Row], answers: Sequence[str], references: Sequence[str], conventions: Conventions
) -> PerRow:
    """ROUGE-L F1 of the answer to a question: recall that is not paid for by talking at length. Texts do not count.

    Source: MUSE (KnowMem), arXiv 2407.06460
    """
    found = [rouge(r, a, conventions) for r, a in zip(references, answers, strict=True)]
    return [f.rouge_l_f1 if f and row.text is None else None for f, row in zip(found, rows, strict=True)]


def verbatim_rouge(
    rows: Sequence[Row], answers: Sequence[str], references: Sequence[str], conventions: Conventions
) -> PerRow:
    """ROUGE-L F1 between a text's second half and the model's continuation of its first. Only plain texts count.

    Source: MUSE (VerbMem), arXiv 2407.06460
    """
    found = [rouge(r, a, conventions) for r, a in zip(references, answers, strict=True)]
    return [f.rouge_l_f1 if f and row.text is not None else None for f, row in zip(found, rows, strict=True)]


def probability(scored: Sequence[Scored], conventions: Conventions) -> PerRow:
    """Length-normalised probability of the answer: exp of the mean token log-probability. 1 = certain.

    Source: TOFU, arXiv 2401.06121
    """
    return [teacher.probability(s, conventions) for s in scored]


def extraction_strength(scored: Sequence[Scored], conventions: Conventions) -> PerRow:
    """Share of the answer that greedy decoding completes from the shortest sufficient prefix. 0 = nothing.

    Source: Towards Effective Evaluations and Comparisons for LLM Unlearning Methods, arXiv 2406.09179
    """
    return [teacher.extraction_strength(s, conventions) for s in scored]


def exact_memorization(scored: Sequence[Scored], conventions: Conventions) -> PerRow:
    """Share of answer tokens that are the model's first choice, given those before them. 1 = all.

    Source: Tirumala et al. 2022, arXiv 2205.10770
    """
    return [teacher.exact_memorization(s, conventions) for s in scored]
