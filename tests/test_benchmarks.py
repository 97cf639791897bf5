"""The benchmark scripts stay alive: each runs in its quick form and writes figures of the agreed shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def quick(script: str, tmp_path: Path) -> dict[str, object]:
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--quick", "--json", str(out)],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(out.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_demo_benchmark_reports_its_figures(tmp_path: Path) -> None:
    found = quick("demo.py", tmp_path)
    figures = {f["name"]: f for f in found["figures"]}  # type: ignore[index, attr-defined]
    assert set(figures) == {"cold_s", "warm_s", "forget_recall", "retain_recall", "control_forget_recall"}
    assert all(set(f) >= {"ours", "plain", "ratio", "unit", "bar", "holds"} for f in figures.values())
    assert figures["control_forget_recall"]["ours"] <= 0.3
    assert figures["forget_recall"]["plain"] >= 0.95, "the original knows its facts"


@pytest.mark.slow
def test_the_sweep_of_the_default_method_runs(tmp_path: Path) -> None:
    (row,) = quick("default_method.py", tmp_path)["grid"]  # type: ignore[misc]
    assert row["values"]["rouge_l_recall/forget"] < 0.5
    assert row["distance"] > 0
