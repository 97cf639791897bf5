"""Progress that people can follow: a bar with time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY = 5.0  # seconds between plain lines


class Teller:
    """Shows phases as they come: call it with a phase, the share done and a few words. Quiet on all ranks but one."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self._phase, self._began, self._said = "", time.monotonic(), 0.0
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[info]}", style="dim"),
                console=console, transient=True,
            )  # fmt: skip

    def __enter__(self) -> Teller:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, phase: str, share: float, info: str = "") -> None:
        if self.quiet:
            return
        fresh = phase != self._phase
        if fresh:
            self._phase, self._began = phase, time.monotonic()
        if self._bar:
            self._draw(phase, share, info, fresh)
        else:
            self._print(phase, share, info, fresh)

    def _draw(self, phase: str, share: float, info: str, fresh: bool) -> None:
        assert self._bar is not None
        if fresh:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(phase, total=1.0, info=info)
        self._bar.update(self._bar.task_ids[0], completed=share, info=info)

    def _print(self, phase: str, share: float, info: str, fresh: bool) -> None:
        now = time.monotonic()
        if not fresh and now - self._said < EVERY:
            return
        self._said = now
        spent = now - self._began
        left = f", about {spent * (1 - share) / share:.0f} s left" if 0.02 < share < 1 and spent > 2 else ""
        print(f"{phase}: {share:.0%}{left}{f'  {info}' if info else ''}", file=sys.stderr, flush=True)
