"""The built-in world through the command line: built once, written out, run without arguments, killed on the way."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import filelock
import pytest
from cli_support import Cli, leftovers, results

pytestmark = pytest.mark.slow


@pytest.fixture
def world(expunge: Cli, shared_home: Path) -> Path:
    """A cache that holds the world, built after an interruption."""
    cache = shared_home / "world"
    with filelock.FileLock(shared_home / "world.lock"):
        if not (cache / "built").exists():
            running = expunge.begin("world", cache=cache)
            done = running.when(lambda: any(cache.glob("pocket/*")), signal.SIGINT)
            assert done.code == 130 and "Resume: expunge world" in done.err and "Traceback" not in done.err
            expunge("world", "--out", "written", cache=cache)
            (cache / "built").touch()
    return cache


def test_run_without_arguments(expunge: Cli, world: Path) -> None:
    """The main job on the built-in world, warm: it forgets, keeps, and the report is there."""
    done = expunge("run", cache=world)
    (run,) = (expunge.cwd / "runs").iterdir()
    found = {(r["audit"], r["split"], r["model"]): r["value"] for r in results(run)["results"]}
    assert found["rouge_l_recall", "forget", "original"] >= 0.95 and found["rouge_l_recall", "forget", "control"] <= 0.3
    assert found["rouge_l_recall", "forget", "unlearned"] < 0.5 * found["rouge_l_recall", "forget", "original"]
    assert found["rouge_l_recall", "retain", "unlearned"] > 0.7
    assert (run / "report.html").exists() and "report: runs/" in done.out
    assert not leftovers(run)


def test_the_world_as_files(expunge: Cli, world: Path) -> None:
    """`world --out`: one file per split, which a run takes as any other files."""
    done = expunge("world", "--out", "files", cache=world)
    names = {p.stem for p in (expunge.cwd / "files").glob("*.jsonl")}
    assert {"forget", "retain", "heldout", "neighbours"} <= names
    rows = [json.loads(x) for x in (expunge.cwd / "files" / "forget.jsonl").read_text().splitlines()]
    assert len(rows) >= 160 and len({r["entity"] for r in rows}) >= 20
    model = next(line.split()[1] for line in done.out.splitlines() if line.startswith("original"))
    files = [x for s in ("forget", "retain", "heldout") for x in (f"--{s}", f"files/{s}.jsonl")]
    assert f"{len(rows)} forget rows" in expunge("plan", "--model", model, *files, cache=world).out
