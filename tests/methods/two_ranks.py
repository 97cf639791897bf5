"""Started by torchrun in test_distributed.py: one rank of a run, noting which rows it collates in every step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from looping import loop, task

from expunge.methods.distributed import world
from expunge.methods.gradient import train
from expunge.records import Row
from expunge.tasks.causal_lm import CausalLM, TextBatch

run, method, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
torch.set_num_threads(1)


class Noting(CausalLM):
    """A causal LM that notes the rows of every batch."""

    seen: list[list[str]]

    def collate(self, rows: list[Row]) -> TextBatch:
        self.seen.append([r.id for r in rows])
        return super().collate(rows)


def main() -> None:
    family = Noting(task().codec)
    family.seen = []
    prepared = loop(run, method, family=family, **settings)
    here = world()
    assert here.size == 2
    drawn: list[Any] = [s.of_rank(*here) for s in prepared.steps]
    family.seen.clear()
    model = train(prepared)
    torch.save({n: p.detach() for n, p in model.named_parameters()}, run / f"weights-{here.rank}.pt")
    report = {
        "rank": here.rank,
        "size": here.size,
        "steps": [s._asdict() for s in drawn],
        "seen": family.seen,
    }
    (run / f"rank-{here.rank}.json").write_text(json.dumps(report))


main()
