"""Fixtures of the command line's tests: tiny material, the forking server, a directory and a cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from cli_material import Material, build
from cli_support import Cli, Zygote


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of one test run share."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cli"
    home.mkdir(exist_ok=True)
    return home


@pytest.fixture(scope="session")
def material(shared_home: Path) -> Material:
    """Models and files, built once for all workers."""
    home = shared_home / "material"
    with filelock.FileLock(shared_home / "material.lock"):
        if not (home / "whole").exists():
            import torch

            torch.set_num_threads(1)
            build(home)
            (home / "whole").touch()
    return Material(home)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Callable[[], Zygote]]:
    """The forking server, started when the first command needs it."""
    started: list[Zygote] = []

    def get() -> Zygote:
        if not started:
            started.append(Zygote())
        return started[0]

    yield get
    for server in started:
        assert server.process.stdin
        server.process.stdin.close()
        server.process.wait(30)


@pytest.fixture
def expunge(zygote: Callable[[], Zygote], tmp_path: Path, shared_home: Path) -> Cli:
    """The command line, in the test's own directory, with a cache that tests share."""
    return Cli(zygote, tmp_path, shared_home / "cache")


@pytest.fixture
def fast(material: Material) -> list[str]:
    """Flags of a run on the tiny material that takes about a second."""
    return [
        "--model", material.original, "--forget", material.forget, "--retain", material.retain, "--steps", "6",
        "--batch-size", "8", "--lr", "3e-3", "--save-every", "2", "--suite", "quick", "--max-new-tokens", "12",
    ]  # fmt: skip
