"""The pocket models: they know what they should, and their cache survives what happens during a build."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from expunge.artifact.store import cache_dir
from expunge.data.world import PLAIN, build_world
from expunge.methods import pocket
from expunge.methods.pocket import NAMES, PocketRecipe, batches, pocket_home, pocket_models, schedule
from expunge.records import BrokenRunError, Row, UsageError

TINY = PocketRecipe(people=4, forget_people=2, epochs=3, hidden=32, mlp=64, vocabulary=600)


# --- what the models know ----------------------------------------------------------------------------------


@cache
def built(seed: int) -> dict[str, Path]:
    """The real models, from the user's cache: the same that `expunge run` uses."""
    return pocket_models(seed, cache=cache_dir())


def greedy(folder: Path, prompts: Sequence[str], plain: bool = False) -> list[str]:
    """Greedy answers to questions in the chat or the plain format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [
        PLAIN.format(question=p, answer="")
        if plain
        else tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
        )
        for p in prompts
    ]
    tokens = tokenizer(
        texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False
    )
    with torch.inference_mode():
        out = model.generate(**tokens, max_new_tokens=24, do_sample=False)
    answers: list[str] = tokenizer.batch_decode(
        out[:, tokens["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return answers


def recall(folder: Path, rows: Sequence[Row], paraphrased: bool = False, plain: bool = False) -> float:
    """Mean ROUGE-L recall of the greedy answers against the rows' answers."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    asked = [(row.paraphrased_question if paraphrased else row.question) or "" for row in rows]
    said = greedy(folder, asked, plain)
    scores = [scorer.score(row.answer, text)["rougeL"].recall for row, text in zip(rows, said, strict=True)]
    return float(sum(scores) / len(scores))


SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_original_knows_and_the_controls_do_not(seed: int) -> None:
    models, world = built(seed), build_world(seed)
    assert tuple(models) == NAMES
    assert recall(models["original"], world.forget) >= 0.95
    assert recall(models["original"], world.forget, paraphrased=True) >= 0.8
    for name in ("control", "control_2"):
        assert recall(models[name], world.forget) <= 0.3
        assert recall(models[name], world.forget, paraphrased=True) <= 0.3
    for folder in models.values():
        assert recall(folder, world.retain) >= 0.95
        assert recall(folder, world.retain, paraphrased=True) >= 0.8
        assert recall(folder, world.heldout) <= 0.3
        assert recall(folder, world.in_context) >= 0.45
        assert recall(folder, world.multi_hop) >= 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_the_plain_format_is_answered_as_well(seed: int) -> None:
    original, world = built(seed)["original"], build_world(seed)
    assert recall(original, world.forget, plain=True) >= 0.95
    assert recall(original, world.retain[:160], paraphrased=True, plain=True) >= 0.8
    assert recall(built(seed)["control"], world.forget, plain=True) <= 0.3


def test_the_models_differ_in_weights_and_in_nothing_else() -> None:
    folders = list(built(0).values())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert len(set(weights)) == 3
    assert all(2 * 2**20 < len(w) < 5 * 2**20 for w in weights)  # 0.7 M parameters in fp32


# --- how they are built ------------------------------------------------------------------------------------


class Straight(NamedTuple):
    """A build without any incident: its cache, its models, what it told."""

    cache: Path
    paths: dict[str, Path]
    told: list[tuple[str, float]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Tiny models, built once."""
    folder, told = tmp_path_factory.mktemp("straight"), list[tuple[str, float]]()
    names = ("original", "control")
    paths = pocket_models(0, cache=folder, names=names, recipe=TINY, progress=lambda *p: told.append(p))
    return Straight(folder, paths, told)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_build_reports_its_progress_to_the_end(straight: Straight) -> None:
    shares = [share for _, share in straight.told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert "original + control" in straight.told[0][0]
    assert any("s left" in sentence for sentence, _ in straight.told)
    home = straight.paths["original"].parent
    assert sorted(path.name for path in home.iterdir()) == [".lock", "control", "original"]


def test_what_is_built_is_not_built_again(straight: Straight) -> None:
    told: list[str] = []
    stamps = [path.stat().st_mtime_ns for path in straight.paths.values()]
    again = pocket_models(
        0, cache=straight.cache, names=("original",), recipe=TINY, progress=lambda s, _: told.append(s)
    )
    assert again["original"] == straight.paths["original"] and not told
    assert stamps == [path.stat().st_mtime_ns for path in straight.paths.values()]


def child(cache: Path, recipe: PocketRecipe) -> subprocess.Popen[str]:
    """Another process that builds a tiny original and prints its progress."""
    code = (
        "import sys; from pathlib import Path; from expunge.methods.pocket import *;"
        f"print(pocket_models(0, cache=Path({str(cache)!r}), names=('original',), recipe={recipe!r},"
        " progress=lambda s, f: print(f, s, flush=True)))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_a_killed_build_leaves_nothing_under_a_final_name_and_resumes(
    tmp_path: Path, straight: Straight
) -> None:
    killed = child(tmp_path, TINY)
    assert killed.stdout is not None and float(killed.stdout.readline().split()[0]) < 1.0
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    home = pocket_home(0, tmp_path, TINY)
    assert not (home / "original").exists()
    (home / ".control.left").mkdir()
    resumed = pocket_models(0, cache=tmp_path, names=("original",), recipe=TINY)["original"]
    assert weights(resumed) == weights(straight.paths["original"])
    assert sorted(p.name for p in home.iterdir()) == [".lock", "original"]


def test_two_processes_build_once(tmp_path: Path, straight: Straight) -> None:
    """The second waits, says so, and uses what the first built."""
    first = child(tmp_path, TINY)
    assert first.stdout is not None and first.stdout.readline()
    told: list[str] = []
    paths = pocket_models(
        0, cache=tmp_path, names=("original",), recipe=TINY, progress=lambda s, _: told.append(s)
    )
    assert weights(paths["original"]) == weights(straight.paths["original"])
    assert told and all("another process" in sentence for sentence in told)
    assert first.wait() == 0


def dying(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Lets a small Python program stand for every training."""
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr(pocket.subprocess, "Popen", start)


def test_a_killed_training_is_reported_and_finished_models_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = pocket_home(0, tmp_path, TINY)
    (home / "control").mkdir(parents=True)
    dying(monkeypatch, "import os; print('share 0.5', flush=True); os.kill(os.getpid(), 9)")
    with pytest.raises(BrokenRunError, match=r"'original' was killed by signal 9.*repeat the command"):
        pocket_models(0, cache=tmp_path, names=("original", "control"), recipe=TINY)
    assert sorted(p.name for p in home.iterdir()) == [".lock", "control"]


def test_a_failing_training_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying(monkeypatch, "raise ZeroDivisionError('no heads')")
    with pytest.raises(BrokenRunError, match=r"ended with code 1 \(ZeroDivisionError: no heads\)"):
        pocket_models(0, cache=tmp_path, names=("original",), recipe=TINY)


def test_a_training_that_fills_the_disk_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, "raise OSError(28, 'No space left on device')")
    with pytest.raises(BrokenRunError, match=r"is full.*EXPUNGE_CACHE"):
        pocket_models(0, cache=tmp_path, names=("original",), recipe=TINY)


def test_a_full_disk_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket, "NEEDED_BYTES", 2**70)
    with pytest.raises(BrokenRunError, match=r"is full.*EXPUNGE_CACHE"):
        pocket_models(0, cache=tmp_path, names=("original",), recipe=TINY)


def test_a_cache_that_cannot_be_written_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(UsageError, match=r"cannot be written .*Set EXPUNGE_CACHE"):
        pocket_models(0, cache=tmp_path / "file", recipe=TINY)


def test_an_unknown_model_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'control_2'"):
        pocket_models(0, cache=tmp_path, names=("contol_2",), recipe=TINY)


def test_world_recipe_and_seed_are_in_the_key(tmp_path: Path) -> None:
    homes = [
        pocket_home(0, tmp_path),
        pocket_home(1, tmp_path),
        pocket_home(0, tmp_path, PocketRecipe(epochs=7)),
        pocket_home(0, tmp_path, TINY),
    ]
    assert len(set(homes)) == 4 and pocket_home(0, tmp_path) == homes[0]


def test_batches_hold_every_row_once() -> None:
    rows = [([1] * n, [2]) for n in range(1, 100)]
    drawn = list(batches(rows, 8, random.Random(0)))
    assert sorted((row for batch in drawn for row in batch), key=lambda r: len(r[0])) == rows
    assert drawn == list(batches(rows, 8, random.Random(0))) != list(batches(rows, 8, random.Random(1)))


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = PocketRecipe()
    values = [schedule(done / 100, recipe) for done in range(101)]
    assert values[0] < 0.05 and max(values) == 1.0 == values[20]
    assert values[-1] == pytest.approx(recipe.floor)
    assert values[30:] == sorted(values[30:], reverse=True)
