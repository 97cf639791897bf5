"""Shared fixtures. Real data is used when it lies beside the checkout and skipped, with the reason, when not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

DATA = Path(os.environ.get("EXPUNGE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Path of a piece of real data, for example `shared("tofu")`; skips the test when it is absent."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"real data {name!r} is not beside this checkout (set EXPUNGE_TEST_DATA)")
        return path

    return find


# Shapes that annotations state are checked while tests run, and cost nothing elsewhere.
install_import_hook(["expunge.objectives"], "beartype.beartype")
