"""kill -9 at any moment: the same command goes on and ends with the values of a run that nobody killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import filelock
import pytest
from cli_material import Material
from cli_support import Cli, events, leftovers, results, values, weights


def stored(cache: Path) -> int:
    """Finished lines in the shared store."""
    return sum(path.read_bytes().count(b"\n") for path in cache.glob("results/*/*.jsonl"))


@pytest.fixture
def flags(fast: list[str], material: Material) -> list[str]:
    """A run with a control that takes long enough to be met in the middle."""
    return ["run", *fast, "--control", material.control, "--steps", "24", "--save-every", "4", "--batch-audit", "4",
            "--suite", "standard"]  # fmt: skip


@pytest.fixture
def straight(expunge: Cli, flags: list[str], shared_home: Path) -> Path:
    """A copy of the run that nobody killed, and of its own cache."""
    home = shared_home / "straight"
    with filelock.FileLock(shared_home / "straight.lock"):
        if not home.exists():
            expunge(*flags, "--out", "straight", cache=expunge.cwd / "cache-straight")
            for name in ("straight", "cache-straight"):
                shutil.copytree(expunge.cwd / name, home / name)
    for name in ("straight", "cache-straight"):
        shutil.copytree(home / name, expunge.cwd / name, dirs_exist_ok=True)
    return expunge.cwd / "straight"


def same(run: Path, straight: Path) -> None:
    """Everything that was measured, judged and trained is equal."""
    assert weights(run) == weights(straight)
    mine, theirs = values(run), values(straight)
    for part in theirs:
        assert mine[part] == theirs[part], part


def test_killed_while_unlearning(expunge: Cli, flags: list[str], straight: Path) -> None:
    """Killed twice between checkpoints: steps since the last checkpoint are done again, once in the log."""
    run, cache = expunge.cwd / "killed", expunge.cwd / "cache-killed"
    again = [*flags, "--out", "killed"]
    for step in (7, 15):
        expunge.begin(*again, cache=cache).kill(lambda step=step: len(events(run)) >= step)
        assert not (run / "artifact").exists()
    expunge(*again, cache=cache)
    assert [e["step"] for e in events(run)] == list(range(1, 25))
    losses = [[(e["step"], e["loss"], e["terms"]) for e in events(r)] for r in (run, straight)]
    assert losses[0] == losses[1]
    same(run, straight)


def test_killed_while_auditing(expunge: Cli, flags: list[str], straight: Path) -> None:
    """Killed in the first and in a later pass of the audit: nothing that was stored is computed again."""
    run, cache = expunge.cwd / "killed", expunge.cwd / "cache-killed"
    again = [*flags, "--out", "killed"]
    for rows in (10, 300):
        expunge.begin(*again, cache=cache).kill(lambda rows=rows: stored(cache) >= rows)
        assert (run / "artifact" / "artifact.json").exists() and not (run / "results.json").exists()
    kept = stored(cache)
    expunge(*again, cache=cache)
    same(run, straight)
    assert stored(cache) == stored(expunge.cwd / "cache-straight") >= kept
    keys = [json.loads(x)["k"] for p in cache.glob("results/*/scores.jsonl") for x in p.read_text().splitlines()]
    assert len(keys) > 300


def test_lines_that_were_cut_short_are_mended(expunge: Cli, flags: list[str], straight: Path) -> None:
    """A kill in the middle of a write leaves half a line; it is left out and the rest holds."""
    run = straight
    before = values(run)
    stores = (expunge.cwd / "cache-straight").glob("results/*/*.jsonl")
    for path in (run / "results.jsonl", run / "events.jsonl", *stores):
        with path.open("ab") as file:
            file.write(b'{"k": "ab\xc3')
    (run / "results.json").unlink()
    expunge(*flags, "--out", "straight", cache=expunge.cwd / "cache-straight")
    assert values(run) == before


def test_two_runs_at_once_share_one_cache(expunge: Cli, flags: list[str], straight: Path) -> None:
    """Two processes fill one store at the same time: both end with the values of a run alone."""
    cache = expunge.cwd / "cache-both"
    both = [expunge.begin(*flags, "--out", name, cache=cache) for name in ("one", "two")]
    for running, name in zip(both, ("one", "two"), strict=True):
        done = running.wait()
        assert done.code == 0, done.err
        same(expunge.cwd / name, straight)
    assert not leftovers(expunge.cwd / "one", expunge.cwd / "two", cache)


def test_a_finished_run_measures_nothing_twice(expunge: Cli, flags: list[str], straight: Path) -> None:
    """The same command on a finished run keeps the weights' file and appends no result."""
    artifact = (straight / "artifact" / "artifact.json").stat().st_mtime_ns
    lines = (straight / "results.jsonl").read_bytes()
    expunge(*flags, "--out", "straight", cache=expunge.cwd / "cache-straight")
    assert (straight / "artifact" / "artifact.json").stat().st_mtime_ns == artifact
    assert (straight / "results.jsonl").read_bytes() == lines
    assert results(straight)["results"]
