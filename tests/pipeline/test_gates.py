"""Gates: what was not measured fails, and a mistyped name is refused before anything runs."""

from __future__ import annotations

import pytest

from expunge.pipeline.gates import judge, parse
from expunge.records import AuditResult, UsageError


def result(value: float | None, model: str = "unlearned", surface: str = "served") -> AuditResult:
    return AuditResult(
        audit="extraction_strength", split="forget", model=model, value=value, direction="closest_to_control",
        surface=surface, status="ok" if value is not None else "failed",
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize(
    ("gate", "value", "holds"),
    [
        ("es_forget:max:0.1", 0.1, True), ("es_forget:max:0.1", 0.11, False), ("es_forget:min:0.1", 0.1, True),
        ("extraction_strength_forget:min:0.5", 0.4, False), ("es_forget:max:0.1", None, False),
        ("rouge_forget:max:1", 0.0, False),
    ],
)  # fmt: skip
def test_a_gate_holds_or_fails(gate: str, value: float | None, holds: bool) -> None:
    assert judge([parse(gate)], [result(value)])[0].holds is holds


def test_only_the_unlearned_model_counts_as_it_is_served() -> None:
    rows = [result(0.9, model="original"), result(0.9, surface="held"), result(0.05)]
    assert judge([parse("es_forget:max:0.1")], rows)[0].value == 0.05


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("es_forgot:max:0.1", "Did you mean 'es_forget'"), ("es_forget:most:0.1", "NAME:max:VALUE"),
        ("es_forget:max:little", "not a number"), ("es_forget", "NAME:max:VALUE"),
    ],
)  # fmt: skip
def test_a_mistyped_gate_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        parse(text)
