"""The two sets of conventions and the switch between them."""

from __future__ import annotations

import dataclasses

import pytest

from expunge.metrics.conventions import CORRECTED, OPEN_UNLEARNING, conventions
from expunge.records import UsageError


def test_no_compat_is_the_corrected_default() -> None:
    assert conventions(None) is CORRECTED
    assert conventions("open-unlearning") is OPEN_UNLEARNING


def test_an_unknown_evaluator_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'open-unlearning'"):
        conventions("open-unlearn")


def test_the_two_differ_in_every_field() -> None:
    """A field that both share would be a constant, not a convention."""
    ours, theirs = dataclasses.asdict(CORRECTED), dataclasses.asdict(OPEN_UNLEARNING)
    assert all(ours[field] != theirs[field] for field in ours)
    with pytest.raises(dataclasses.FrozenInstanceError):
        CORRECTED.epsilon = 1.0  # type: ignore[misc]
