"""Rows and the sentences they refuse with."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from expunge.records import Message, Row, digest, nearest


def test_another_answer_stands_in_the_answers_place_of_any_shape() -> None:
    row = Row(question="Who wrote it?", answer="Mara.")
    assert row.answered("Odo.").answer == "Odo."
    assert row.answered("Odo.").question == "Who wrote it?"
    turns = tuple(Message(role=r, content=r) for r in ("system", "user", "assistant"))
    changed = Row(messages=turns).answered("Odo.")
    assert [m.content for m in changed.messages or ()] == ["system", "user", "Odo."]
    assert changed.reference() == "Odo."


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "exactly one of"),
        ({"question": "q", "text": "t", "answer": "a"}, "exactly one of"),
        ({"question": "q"}, "missing field 'answer'"),
        ({"question": "q", "answer": "  "}, "missing field 'answer'"),
        ({"text": " "}, "'text' is empty"),
        ({"messages": [{"role": "user", "content": "q"}]}, "must end in a non-empty turn"),
    ],
)
def test_a_row_without_what_it_needs_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Row.model_validate(fields)


def test_digests_keep_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_only_a_near_word_is_suggested() -> None:
    assert nearest("npoo", ["npo", "rmu"]) == " Did you mean 'npo'?"
    assert nearest("zzz", ["npo", "rmu"]) == ""
