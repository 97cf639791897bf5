"""The synthetic run directory as a fixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import Make, build


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(name="run", config=..., models=..., rows=...)` builds a run directory and returns its path."""

    def one(name: str = "npo-veldhaven", **parts: Any) -> Path:
        return build(tmp_path / name, **parts)

    return one
