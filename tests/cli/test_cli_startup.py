"""Starting is quick: help and refusals of words need no torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest
from cli_support import Cli, environment

from expunge.cli import VERBS

QUICK = 0.5  # seconds for `expunge --help`
HEAVY = ("torch", "transformers", "numpy", "scipy", "matplotlib", "peft", "pydantic_settings")


def process(*argv: str) -> subprocess.CompletedProcess[str]:
    """`python` with arguments, in a process of its own."""
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment(), check=False)


def test_help_is_quick() -> None:
    """The median of three; a busy machine gets two more tries."""
    for _ in range(3):
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            done = process("-m", "expunge", "--help")
            seconds.append(time.perf_counter() - began)
            assert done.returncode == 0 and "expunge run" in done.stdout
        if statistics.median(seconds) <= QUICK:
            return
    assert statistics.median(seconds) <= QUICK


@pytest.mark.parametrize("argv", [
    ["--help"], ["--version"], ["runn"], ["list", "methods"], ["list", "audits"], ["run", "--help"],
])  # fmt: skip
def test_light_verbs_import_no_torch(argv: list[str]) -> None:
    """Help, lists and wrong verbs leave the heavy packages alone."""
    script = (
        "import sys\nfrom expunge.cli import dispatch\n"
        f"try:\n    dispatch({argv!r})\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY[:2] + HEAVY[3:]!r} if m in sys.modules])\n"
    )
    done = process("-c", script)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(expunge: Cli, verb: str) -> None:
    """--help of every verb: its usage, exit 0."""
    assert "usage" in expunge(verb, "--help").said.lower()
