"""Batched generation: sorted by length, padded on the left, positions counted from the mask as scoring counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Ids = tuple[int, ...]


@torch.no_grad()
def continue_ids(
    model: nn.Module,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    end_ids: list[int],
    pad_id: int = 0,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    on_batch: Callable[[list[int], list[list[int]]], None] | None = None,
) -> list[list[int]]:
    """Continuations of prompts of token ids, each cut before its first end token, in the order of the prompts.

    temperature 0 is greedy; above it, samples that depend on `seed` and on the position of the batch only.
    `on_batch(indices, continuations)` is called as batches finish, so that nothing finished is lost.
    """
    device = next(model.parameters()).device
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        ids, attention = _left_padded([prompts[i] for i in indices], pad_id)
        torch.manual_seed(seed + start)
        with _own_settings_aside(model):
            generated = model.generate(  # type: ignore[operator]
                input_ids=ids.to(device),
                attention_mask=attention.to(device),
                generation_config=_settings(max_new_tokens, end_ids, pad_id, temperature),
            )[:, ids.shape[1] :].tolist()
        for i, row in zip(indices, generated, strict=True):
            out[i] = _until(row, end_ids)
        if on_batch:
            on_batch(indices, [out[i] for i in indices])
    model.train(was_training)
    return out


def _left_padded(prompts: list[Ids], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for b, prompt in enumerate(prompts):
        ids[b, longest - len(prompt) :] = torch.tensor(prompt)
        attention[b, longest - len(prompt) :] = 1
    return ids, attention


@contextmanager
def _own_settings_aside(model: nn.Module) -> Iterator[None]:
    """Takes a checkpoint's own generation defaults away for a while: transformers fills what a call leaves open from
    them, so that a repetition penalty would change greedy answers."""
    from transformers import GenerationConfig

    owners = [m for m in model.modules() if "generation_config" in vars(m)]
    kept = [m.generation_config for m in owners]
    try:
        for m in owners:
            m.generation_config = GenerationConfig()
        yield
    finally:
        for m, own in zip(owners, kept, strict=True):
            m.generation_config = own


def _settings(max_new_tokens: int, end_ids: list[int], pad_id: int, temperature: float) -> Any:
    """Explicit settings; see `_own_settings_aside` for those that are not named here."""
    from transformers import GenerationConfig

    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0}
        if temperature > 0
        else {"do_sample": False}
    )
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id,
        num_beams=1,
        **sampling,
    )


def _until(ids: list[int], end_ids: list[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in end_ids), len(ids))
    return ids[:stop]
