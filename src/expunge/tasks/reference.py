"""Reference values: what the original model said, computed once per row before training changes it.

Numbers are kept as numbers. Full distributions are kept as the last hidden states at scored positions and one frozen
copy of the output head, which gives the same logits and is a hundredth of their size; never a second model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from expunge.tasks.quantities import Task, parse

WITHOUT_T = ("answer_logp", "answer_len")


class Reference:
    """Reference values of rows by their identity (`id(row)`); the rows are kept alive."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        self.task, self.model = task, model
        self._values: dict[tuple[int, str], Tensor] = {}
        self._rows: list[Any] = []
        self._head: nn.Module | None = None
        self._head_suffices: bool | None = None  # decided on the first batch, then kept

    @torch.no_grad()
    def learn(self, rows: Sequence[Any], names: set[str], batch_size: int) -> None:
        """Computes the quantities `names` (without the prefix `ref_`) of rows, unless they are known."""
        todo = {id(r): r for r in rows if any((id(r), n) not in self._values for n in names)}
        ordered = sorted(todo.values(), key=self.task.length)
        self._rows += ordered
        for start in range(0, len(ordered), batch_size):
            part = ordered[start : start + batch_size]
            for alt in (False, True):
                wanted = {n for n in names if parse(n).alt is alt}
                if wanted:
                    asked = [self.task.alternative(r) for r in part] if alt else part
                    self._keep(part, self.task.collate(asked), wanted)

    def _keep(self, rows: list[Any], batch: Any, names: set[str]) -> None:
        local = {name: parse(name).local for name in names}
        reading = getattr(self.task, "reading_head", None) if "logits" in local.values() else None
        with reading(self.model, batch) if reading else nullcontext() as read:
            q = self.task.quantities(self.model, batch, set(local.values()) | {"mask"})
        sizes = q["mask"].sum(1).tolist()
        for name, base in local.items():
            value = self._compact(read, q[base]) if read and base == "logits" else q[base]
            for b, row in enumerate(rows):
                kept = value[b] if base in WITHOUT_T else value[b, : sizes[b]]
                self._values[id(row), name] = kept.clone()

    def _compact(self, read: Any, logits_BTV: Tensor) -> Tensor:
        """Head inputs in the logits' place where the head alone turns them into these logits; else the logits."""
        (hidden_BTD,) = read.hidden_BTD
        if self._head_suffices is None:
            # A soft-cap or scale behind the head makes the two differ; then the logits themselves are kept.
            again_BTV = read.head(hidden_BTD).float()
            self._head_suffices = torch.allclose(again_BTV, logits_BTV, atol=1e-5, rtol=1e-5)
            self._head = copy.deepcopy(read.head).requires_grad_(False) if self._head_suffices else None
        return hidden_BTD if self._head_suffices else logits_BTV

    @torch.no_grad()
    def batch(self, rows: Sequence[Any], names: set[str]) -> dict[str, Tensor]:
        """Reference values of rows as padded tensors, by name without the prefix `ref_`."""
        return {name: self._padded([self._values[id(r), name] for r in rows], name) for name in names}

    def _padded(self, values: list[Tensor], name: str) -> Tensor:
        if values[0].ndim == 0:
            return torch.stack(values)
        x = nn.utils.rnn.pad_sequence(values, batch_first=True)
        return self._head(x).float() if parse(name).base == "logits" and self._head is not None else x
