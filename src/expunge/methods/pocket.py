"""The pocket models: a small language model that knows the built-in world, and two controls that never knew.

`original` is trained on everything; `control` and `control_2` are retrained from other seeds with the same
architecture, tokenizer and recipe on the same lessons, less the forget people. Each is a plain Hugging Face
directory in a cache that is keyed by content. A directory has its final name only when it is whole; models
are trained as parallel one-thread processes, and a killed build trains only what is missing when it is asked
again.

The parent process needs no torch: `python -m expunge.methods.pocket` runs one training.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import expunge
from expunge.artifact.store import whole_directory
from expunge.data.world import PLAIN, Lesson, World, build_tokenizer, build_world
from expunge.records import BrokenRunError, ExpungeError, UsageError, digest, nearest

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Progress = Callable[[str, float], None]
Encoded = tuple[list[int], list[int]]

NAMES = ("original", "control", "control_2")
CODE = 1
"""Raised whenever a change of the code below changes what comes out of a training."""
NEEDED_BYTES = 64 * 2**20
"""Free disk space below which a build is refused (three models take 10 MB)."""


@dataclass(frozen=True)
class PocketRecipe:
    """Everything but the seed that decides the weights."""

    people: int = 70
    forget_people: int = 20
    vocabulary: int = 1500
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    mlp: int = 512
    epochs: int = 50
    batch: int = 32
    lr: float = 2e-3
    beta2: float = 0.98
    weight_decay: float = 0.01
    warmup: float = 0.05
    flat: float = 0.3
    floor: float = 0.02


def pocket_models(
    seed: int = 0,
    *,
    cache: Path,
    names: Sequence[str] = NAMES,
    progress: Progress | None = None,
    recipe: PocketRecipe | None = None,
) -> dict[str, Path]:
    """Directories of the pocket models by name, built where the cache does not hold them yet.

    `seed` decides the world, the initialisations and the order of lessons. `progress(sentence, share)` is
    called with every epoch of every model, with `share` of the work done in [0, 1], and about once a second
    while another process builds; not at all when all are cached.

    Raises UsageError for an unknown name or a cache that cannot be written, BrokenRunError when the disk is
    full or a training died; the same call then builds only what is missing.
    """
    recipe = recipe or PocketRecipe()
    for name in names:
        if name not in NAMES:
            raise UsageError(
                f"there is no pocket model '{name}'.{nearest(name, NAMES)} Known: {', '.join(NAMES)}."
            )
    home = pocket_home(seed, cache, recipe).absolute()
    paths = {name: home / name for name in names}
    if all(path.is_dir() for path in paths.values()):
        return paths
    tell = progress or _silent
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _sole_builder(home, tell):
            missing = [name for name in names if not paths[name].is_dir()]
            if missing:
                _make_room(home)
                _train_all(missing, seed, home, recipe, tell)
    except OSError as error:
        raise _disk_error(error, home) from error
    return paths


def pocket_home(seed: int, cache: Path, recipe: PocketRecipe | None = None) -> Path:
    """The directory of the models of a seed and recipe; its name is a digest of world, recipe and code."""
    recipe = recipe or PocketRecipe()
    world = build_world(seed, recipe.people, recipe.forget_people)
    return Path(cache) / "pocket" / f"seed{seed}-{digest(world.digest, asdict(recipe), CODE)}"


def _silent(sentence: str, share: float) -> None:
    """Progress for callers who want none."""


# --- one builder at a time, on a disk with room ------------------------------------------------------------


@contextmanager
def _sole_builder(home: Path, tell: Progress) -> Iterator[None]:
    """Holds the lock of `home`; the operating system frees it when its holder dies, however that happens."""
    import filelock

    lock = filelock.FileLock(home / ".lock")
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except filelock.Timeout:
            tell("waiting: another process is building the pocket models", 0.0)
    try:
        yield
    finally:
        lock.release()


def _make_room(home: Path) -> None:
    """Removes what killed builds left, and refuses to start on a full disk; needs the lock."""
    for left in home.glob(".*.*"):
        shutil.rmtree(left, ignore_errors=True)
    if shutil.disk_usage(home).free < NEEDED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home))


def _disk_error(error: OSError, home: Path) -> ExpungeError:
    """What a failed write means to the person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BrokenRunError(
            f"the disk that holds the cache {home} is full; the pocket models need {NEEDED_BYTES >> 20} MB. "
            "Free some space, or set EXPUNGE_CACHE to a directory with room; finished models are kept."
        )
    return UsageError(
        f"the cache {home} cannot be written ({error.strerror or error}). Set EXPUNGE_CACHE to a directory "
        "that can be written, then repeat the command."
    )


# --- the parent: start trainings, follow them --------------------------------------------------------------


def _train_all(names: Sequence[str], seed: int, home: Path, recipe: PocketRecipe, tell: Progress) -> None:
    """Trains the models in parallel one-thread processes; raises when one dies, and stops the others."""
    lines: queue.Queue[tuple[str, str | None]] = queue.Queue()
    tails = {name: deque[str](maxlen=8) for name in names}
    done = dict.fromkeys(names, 0.0)
    started = time.monotonic()
    children = {name: _start(name, seed, home, recipe, lines) for name in names}
    running = set(names)
    tell(*_report(names, done, 0.0))
    try:
        while running:
            try:
                name, line = lines.get(timeout=1.0)
            except queue.Empty:
                continue
            if line is None:
                running.discard(name)
                if children[name].wait() != 0:
                    raise _death(name, children[name].returncode, tails[name], home)
                done[name] = 1.0
            elif line.startswith("share "):
                done[name] = float(line.split()[1])
            else:
                tails[name].append(line.rstrip())
            tell(*_report(names, done, time.monotonic() - started))
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def _start(
    name: str, seed: int, home: Path, recipe: PocketRecipe, lines: queue.Queue[tuple[str, str | None]]
) -> subprocess.Popen[str]:
    """One training process, and a thread that hands its lines over, with None at the end."""
    job = json.dumps({"name": name, "seed": seed, "home": str(home), "recipe": asdict(recipe)})
    source = str(Path(expunge.__file__).parents[1])
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")])),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "expunge.methods.pocket", job],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=home,  # Python looks for modules in the working directory first; the caller's may hold anything.
    )

    def follow() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put((name, line))
        lines.put((name, None))

    threading.Thread(target=follow, daemon=True).start()
    return child


def _report(names: Sequence[str], done: dict[str, float], seconds: float) -> tuple[str, float]:
    """A sentence with the time left, and the share of the work that is done."""
    share = sum(done.values()) / len(done)
    left = f", about {seconds * (1 - share) / share:.0f} s left" if share > 0.02 else ""
    return f"training {' + '.join(names)}: {share:.0%}{left}", share


def _death(name: str, code: int, tail: Sequence[str], home: Path) -> ExpungeError:
    """What the death of a training process means to the person; its last lines say why."""
    said = next((line for line in reversed(tail) if line.strip()), "it said nothing")
    full = ("No space left on device", "Disk quota exceeded", "the disk is full")
    if any(words in line for line in tail for words in full):
        return _disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), home)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return BrokenRunError(
        f"the training of the pocket model '{name}' {how} ({said}). Finished models are kept in {home}; "
        "repeat the command to build the rest."
    )


# --- the child: one training -------------------------------------------------------------------------------


def main(job: str) -> None:
    """Trains one model, as `_start` asks for it, and puts it under its final name."""
    asked = json.loads(job)
    name, seed, home, recipe = (
        asked["name"],
        asked["seed"],
        Path(asked["home"]),
        PocketRecipe(**asked["recipe"]),
    )
    parent = os.getppid()

    def share(done: float) -> None:
        if os.getppid() != parent:
            sys.exit("the process that asked for this training is gone")
        print(f"share {done:.4f}", flush=True)

    world = build_world(seed, recipe.people, recipe.forget_people)
    tokenizer = build_tokenizer(world, recipe.vocabulary)
    model = train(world, tokenizer, len(NAMES) * seed + NAMES.index(name), recipe, name == "original", share)
    with whole_directory(home / name) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)


def train(
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: PocketRecipe,
    forget: bool,
    share: Callable[[float], None],
) -> LlamaForCausalLM:
    """A model trained from `seed` on the world's lessons, those about the forget people only if `forget`.

    The loss is on answers only; the same seed gives the same weights, byte for byte, on the same machine.
    """
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(tokenizer, recipe))
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.lr,
        betas=(0.9, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    per_epoch = -(-sum(1 for _ in world.lessons(0, seed=seed, forget=forget)) // recipe.batch)
    steps, step = per_epoch * recipe.epochs, 0
    native_bf16 = _native_bf16()
    for epoch in range(recipe.epochs):
        rows = [encode(lesson, tokenizer) for lesson in world.lessons(epoch, seed=seed, forget=forget)]
        for batch in batches(rows, recipe.batch, random.Random(f"order {seed} {epoch}")):
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * schedule(min(1.0, step / steps), recipe)
            with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16):
                loss = _loss(model, batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
        share((epoch + 1) / recipe.epochs)
    return model.eval()


def _config(tokenizer: PreTrainedTokenizerFast, recipe: PocketRecipe) -> Any:
    """Eager attention: on a CPU its backward pass in bf16 is twice as fast as the fused one's."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",
    )


def _native_bf16() -> bool:
    """Whether this CPU computes in bf16 by itself; emulated bf16 would be slower than fp32."""
    import torch

    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def encode(lesson: Lesson, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Token ids of the prompt and of the answer with its end of sequence."""
    said = [
        *tokenizer.encode(lesson.messages[-1].content, add_special_tokens=False),
        tokenizer.eos_token_id,
    ]
    if lesson.plain:
        prompt = PLAIN.format(question=lesson.messages[-2].content, answer="")
        return tokenizer.encode(prompt, add_special_tokens=False), said
    turns = [message.model_dump() for message in lesson.messages[:-1]]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(chat, add_special_tokens=False), said


def batches(rows: Sequence[Encoded], size: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """The rows in random batches; rows of like length stand together within windows of four batches."""
    shuffled = rng.sample(list(rows), len(rows))
    for start in range(0, len(shuffled), 4 * size):
        window = sorted(shuffled[start : start + 4 * size], key=lambda row: len(row[0]) + len(row[1]))
        for at in range(0, len(window), size):
            yield window[at : at + size]


def schedule(done: float, recipe: PocketRecipe) -> float:
    """Share of the peak learning rate after `done` of all steps: linear rise, flat, linear fall."""
    if done < recipe.warmup:
        return (done + 1e-3) / (recipe.warmup + 1e-3)
    if done < recipe.flat:
        return 1.0
    return 1.0 - (1.0 - recipe.floor) * (done - recipe.flat) / (1.0 - recipe.flat)


def _loss(model: LlamaForCausalLM, batch: Sequence[Encoded]) -> torch.Tensor:
    """Mean negative log-likelihood per answer token; the vocabulary is read at answer positions only.

    Shapes are rounded up, because the CPU kernels are compiled and kept for each shape that they meet.
    """
    import torch

    length = max(len(prompt) + len(said) for prompt, said in batch) - 1
    length += -length % 8
    ids = [((prompt + said)[:-1] + [0] * length)[:length] for prompt, said in batch]
    scored = [row * length + len(p) - 1 + at for row, (p, s) in enumerate(batch) for at in range(len(s))]
    targets = [token for _, said in batch for token in said]
    spare = -len(scored) % 64
    # Padding stands on the right and attention looks to the left, so no mask is needed.
    hidden = model.model(input_ids=torch.tensor(ids), use_cache=False).last_hidden_state
    logits_NV = model.lm_head(hidden.flatten(0, 1)[torch.tensor(scored + [0] * spare)])
    return torch.nn.functional.cross_entropy(logits_NV.float(), torch.tensor(targets + [-100] * spare))


if __name__ == "__main__":
    main(sys.argv[1])
