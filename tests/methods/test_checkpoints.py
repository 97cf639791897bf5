"""Checkpoints: whole or absent, two are kept, what comes back is bitwise what was saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from expunge.methods import checkpoints


def setting(seed: int = 0, learn: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after some steps of AdamW; one parameter is frozen, one gets no gradient, one is tied."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[1].weight.requires_grad_(False)
    model[3].weight = model[0].weight
    parameters = list(checkpoints.trained(model).values())
    optimiser = torch.optim.AdamW(parameters, lr=0.1)
    for _ in range(learn):
        optimiser.zero_grad()
        model[3](model[1](model[0](torch.randn(2, 4)))).square().sum().backward()
        optimiser.step()
    return model, optimiser


def test_what_comes_back_is_bitwise_what_was_saved(tmp_path: Path) -> None:
    model, optimiser = setting()
    checkpoints.save(tmp_path, 3, model, optimiser, {"combiner": {"dual": 0.5}})
    other, fresh = setting(seed=1, learn=0)
    assert checkpoints.restore(tmp_path, other, fresh) == {"step": 3, "combiner": {"dual": 0.5}}
    for (name, p), q in zip(
        checkpoints.trained(model).items(), checkpoints.trained(other).values(), strict=True
    ):
        assert torch.equal(p, q), name
        kept, back = optimiser.state[p], fresh.state[q]
        assert kept.keys() == back.keys()
        assert all(torch.equal(kept[k], back[k]) and kept[k].shape == back[k].shape for k in kept)
    assert other[3].weight is other[0].weight


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    model, optimiser = setting()
    checkpoints.save(tmp_path, 3, model, optimiser, {})
    other, fresh = setting(seed=1, learn=0)
    with torch.no_grad():
        other[1].weight.copy_(model[1].weight)  # frozen: not in the checkpoint
    checkpoints.restore(tmp_path, other, fresh)
    for m, o in ((model, optimiser), (other, fresh)):
        o.zero_grad()
        m[3](m[1](m[0](torch.ones(2, 4)))).square().sum().backward()
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_only_what_trains_is_kept(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, optimiser = setting()
    made = checkpoints.save(tmp_path, 3, model, optimiser, {})
    assert set(load_file(made / "parameters.safetensors")) == {
        "0.weight",
        "0.bias",
        "1.bias",
        "2.weight",
        "2.bias",
    }
    assert {p.suffix for p in made.iterdir()} == {".safetensors", ".json"}  # nothing that unpickles


def test_two_are_kept_and_the_newest_is_restored(tmp_path: Path) -> None:
    model, optimiser = setting()
    for step in (9, 10, 11, 100):
        checkpoints.save(tmp_path, step, model, optimiser, {})
    assert [p.name for p in checkpoints.saved(tmp_path)] == ["step-000011", "step-000100"]
    assert (checkpoints.restore(tmp_path, model, optimiser) or {})["step"] == 100


def test_without_a_checkpoint_nothing_is_restored(tmp_path: Path) -> None:
    model, optimiser = setting()
    assert checkpoints.restore(tmp_path / "none", model, optimiser) is None
    (tmp_path / "step-000007").mkdir()  # a directory that never got its state.json
    assert checkpoints.restore(tmp_path, model, optimiser) is None
    assert checkpoints.saved(tmp_path) == []


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from expunge.methods import checkpoints
model = nn.Linear(4, 4)
optimiser = torch.optim.AdamW(model.parameters())
checkpoints.save(Path(sys.argv[1]), 1, model, optimiser, {})
checkpoints.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(Path(sys.argv[1]), 2, model, optimiser, {})
"""


def test_a_kill_while_saving_leaves_the_last_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in checkpoints.saved(tmp_path)] == ["step-000001"]
    model = nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(model.parameters())
    assert (checkpoints.restore(tmp_path, model, optimiser) or {})["step"] == 1
    checkpoints.save(tmp_path, 2, model, optimiser, {})
    assert [p.name for p in checkpoints.saved(tmp_path)] == ["step-000001", "step-000002"]
