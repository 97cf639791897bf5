"""`expunge control`: all three kinds, made and used; a control that did see the rows is no control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_material import Material, lines
from cli_support import Cli, leftovers, results

TRAINING = ["--steps", "20", "--lr", "5e-3", "--batch-size", "10"]


def measured(run: Path, model: str = "control", split: str = "forget") -> list[dict[str, Any]]:
    """Results of a model on a split."""
    return [r for r in results(run)["results"] if (r["model"], r["split"]) == (model, split)]


def test_a_retrained_control(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Trained from a base on retain alone; a run takes it as retrained and compares with it."""
    flags = ["control", "--base", material.base, "--forget", material.forget, "--retain", material.retain, *TRAINING]
    done = expunge(*flags, "--out", "c")
    assert "--control c" in done.said
    manifest = json.loads((expunge.cwd / "c" / "artifact.json").read_text())
    assert (manifest["kind"], manifest["control_kind"]) == ("control", "retrained")
    assert len(manifest["notes"]["never_saw"]) == 20
    assert not leftovers(expunge.cwd), "the training's own directory was left"
    assert "holds a control already" in expunge.refused(*flags, "--out", "c")
    expunge("run", *fast, "--control", "c", "--out", "r")
    assert results(expunge.cwd / "r")["control"]["kind"] == "retrained"
    assert all(r["status"] == "ok" for r in measured(expunge.cwd / "r"))
    mine = {r["audit"]: r["value"] for r in measured(expunge.cwd / "r")}
    assert all(r["reference"] == mine[r["audit"]] for r in measured(expunge.cwd / "r", "unlearned"))


def test_a_killed_control_resumes_to_the_same_weights(expunge: Cli, material: Material) -> None:
    """kill -9 while the control trains: the same command goes on."""
    flags = ["control", "--base", material.base, "--forget", material.forget, "--retain", material.retain, *TRAINING]
    flags += ["--save-every", "5"]
    expunge(*flags, "--out", "straight")
    work = expunge.cwd / ".killed.training" / "checkpoints" / "step-000010" / "state.json"
    expunge.begin(*flags, "--out", "killed").kill(work.exists)
    assert not (expunge.cwd / "killed").exists()
    expunge(*flags, "--out", "killed")
    files = [(expunge.cwd / name / "model" / "model.safetensors").read_bytes() for name in ("straight", "killed")]
    assert files[0] == files[1]


def test_a_predecessor(expunge: Cli, material: Material, fast: list[str]) -> None:
    """The model before it saw the rows, as it is: the same values as the plain model itself."""
    expunge("control", "--kind", "predecessor", "--base", material.control, "--forget", material.forget, "--out", "c")
    expunge("run", *fast, "--control", "c", "--out", "r")
    expunge("run", *fast, "--control", material.control, "--control-kind", "predecessor", "--out", "p")
    made, plain = expunge.cwd / "r", expunge.cwd / "p"
    assert results(made)["control"]["kind"] == results(plain)["control"]["kind"] == "predecessor"
    assert [r["value"] for r in measured(made)] == [r["value"] for r in measured(plain)]


def test_a_data_side_control(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Matched never-seen rows stand in for the forget rows, under the original; elsewhere it is not applicable."""
    flags = ["control", "--kind", "data_side", "--model", material.original, "--forget", material.forget]
    said = expunge.refused(*flags, "--matched", material.forget, "--out", "c")
    assert "20 matched rows" in said and "never seen" in said and not (expunge.cwd / "c").exists()
    expunge(*flags, "--matched", material.heldout, "--out", "c")
    expunge("run", *fast, "--control", "c", "--heldout", material.heldout, "--out", "r")
    run = expunge.cwd / "r"
    assert results(run)["control"] == {"kind": "data_side", "path": material.original, "matched": 20}
    assert all(r["status"] == "ok" for r in measured(run))
    held = {r["audit"]: r["value"] for r in measured(run, "original", "heldout")}
    for row in measured(run):
        if row["audit"] in held:
            assert row["value"] == pytest.approx(held[row["audit"]], abs=1e-6)
    kept = measured(run, "control", "retain")
    assert kept and all(r["status"] == "not_applicable" and "data-side" in r["reason"] for r in kept)
    assert results(run)["verdict"]["name"] != "removal-consistent"


def test_a_control_that_saw_the_rows_is_not_applicable(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Made without other rows: the reason and the command that makes a right one; retain is compared all the same."""
    others = lines(expunge.cwd / "others.jsonl", material.rows("retain")[:5])
    rest = lines(expunge.cwd / "rest.jsonl", [*material.rows("forget"), *material.rows("retain")[5:]])
    expunge("control", "--base", material.base, "--forget", others, "--retain", rest, *TRAINING, "--out", "c")
    done = expunge("run", *fast, "--control", "c", "--out", "r")
    run = expunge.cwd / "r"
    for split in ("forget", "forget_paraphrased"):
        found = measured(run, "control", split)
        assert found
        for row in found:
            assert row["status"] == "not_applicable" and row["value"] is None
            assert "not made without these rows" in row["reason"] and "expunge control" in row["reason"]
    assert all(r["reference"] is None for r in measured(run, "unlearned"))
    assert any(r["status"] == "ok" for r in measured(run, "control", "retain"))
    assert results(run)["verdict"]["name"] == "inconclusive" or "destroyed" in done.out


def test_no_control_is_never_a_default_value(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Without a control every comparison is not applicable, and the command that makes one is in the reason."""
    expunge("run", *fast, "--out", "r")
    found = [r for r in results(expunge.cwd / "r")["results"] if r["model"] == "control"]
    assert found and all(r["status"] == "not_applicable" and "expunge control" in r["reason"] for r in found)
    assert all(r["reference"] is None for r in results(expunge.cwd / "r")["results"])


def test_what_a_kind_needs_is_asked_for(expunge: Cli, material: Material) -> None:
    """Each kind names what it lacks; unknown kinds and files are refused."""
    for kind, needs in (("predecessor", "--base and --forget"), ("data_side", "--model and --forget and --matched")):
        assert needs in expunge.refused("control", "--kind", kind)
    argv = ["control", "--base", material.base, "--forget", "nowhere.jsonl", "--retain", material.retain, "--out", "c"]
    assert "there is no file" in expunge.refused(*argv, code=3)
    argv[4] = material.forget
    argv[2] = "nobody/nothing"
    assert "nobody/nothing" in expunge.refused(*argv, code=3)
    assert not (expunge.cwd / "c").exists() and not leftovers(expunge.cwd)
