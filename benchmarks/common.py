"""What every benchmark script shares: the shape of its figures, the table, the exit code."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

from expunge.artifact.opening import versions
from expunge.pipeline.run import machine


class Figure(NamedTuple):
    """One headline number. `plain`: what the plain way costs in the same run, None where there is none.

    bar: the limit that an issue set; `lower` says on which side of it the figure must be.
    """

    name: str
    ours: float
    plain: float | None
    unit: str
    bar: float | None
    lower: bool = True

    @property
    def holds(self) -> bool:
        """Whether the bar is kept; a figure fails only beyond it by more than 10 %."""
        if self.bar is None:
            return True
        return self.ours <= self.bar * 1.1 if self.lower else self.ours >= self.bar * 0.9


def publish(figures: list[Figure], path: Path | None) -> int:
    """Prints the figures, writes them as JSON, returns 1 when one fails."""
    print(f"{'figure':24}{'ours':>12}{'plain':>12}{'ratio':>8}  {'unit':12}{'bar':>8}  holds")
    for f in figures:
        ratio = f"{f.plain / f.ours:.2f}" if f.plain and f.ours else ""
        plain, bar = (
            f"{f.plain:.3f}" if f.plain is not None else "",
            f"{f.bar:g}" if f.bar is not None else "",
        )
        print(
            f"{f.name:24}{f.ours:12.3f}{plain:>12}{ratio:>8}  {f.unit:12}{bar:>8}  {'yes' if f.holds else 'NO'}"
        )
    if path:
        path.write_text(json.dumps(_record(figures), indent=1) + "\n", encoding="utf-8")
    return 0 if all(f.holds for f in figures) else 1


def _record(figures: list[Figure]) -> dict[str, Any]:
    rows = [
        {**f._asdict(), "ratio": f.plain / f.ours if f.plain and f.ours else None, "holds": f.holds}
        for f in figures
    ]
    return {
        "figures": rows,
        "machine": {**machine(), "processor": platform.machine()},
        "versions": versions(),
    }
