"""`expunge run` without arguments, cold and warm, as a whole process; and what it achieves.

cold: an empty cache, so the world and three pocket models are built. warm: the world is in the cache, the run is new.
plain: the same run once more with --overwrite and an emptied results store, that is without sharing scores.

    python benchmarks/demo.py --json docs/demo.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Figure, publish

COLD_BAR, WARM_BAR = 180.0, 60.0


def timed(arguments: list[str], folder: Path) -> float:
    """Wall seconds of one `expunge run`; the figures mean nothing if it fails, so that raises."""
    began = time.perf_counter()
    environment = {**os.environ, "EXPUNGE_CACHE": str(folder / "cache")}
    subprocess.run([sys.executable, "-m", "expunge", "run", *arguments], check=True, cwd=folder, env=environment,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - began


def value(run: Path, split: str, model: str) -> float:
    """Answer recall of a model on a split."""
    rows = json.loads((run / "results.json").read_text(encoding="utf-8"))["results"]
    found = [
        r["value"] for r in rows if (r["audit"], r["split"], r["model"]) == ("rouge_l_recall", split, model)
    ]
    return float(found[0])


def measure(folder: Path, quick: bool) -> list[Figure]:
    """All figures; `quick` uses 4 steps and the cheap suite, to see that the script works."""
    few = ["--steps", "4"] if quick else []
    cold = timed(["--out", "cold", *few], folder)
    warm = timed(["--out", "warm", *few], folder)
    shutil.rmtree(folder / "cache" / "results")
    plain = timed(["--out", "warm", "--overwrite", *few], folder)
    run = folder / "warm"
    recall, limit = "ROUGE-L recall", None if quick else 0.3
    return [
        Figure("cold_s", cold, None, "s", None if quick else COLD_BAR),
        Figure("warm_s", warm, plain, "s", None if quick else WARM_BAR),
        Figure(
            "forget_recall",
            value(run, "forget", "unlearned"),
            value(run, "forget", "original"),
            recall,
            limit,
        ),
        Figure(
            "retain_recall",
            value(run, "retain", "unlearned"),
            value(run, "retain", "original"),
            recall,
            None if quick else 0.95,
            lower=False,
        ),
        Figure("control_forget_recall", value(run, "forget", "control"), None, recall, 0.3),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), args.quick)
    sys.exit(publish(figures, args.json))


if __name__ == "__main__":
    main()
