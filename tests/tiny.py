"""Tiny models, tokenizers and rows for tests: built from configurations in milliseconds, nothing is downloaded."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from expunge.data.text import Codec
from expunge.records import Row

SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
CORPUS = [
    "Question: Who wrote the book about the river?\nAnswer:\nMira Volkova wrote the book in Oslo.",
    "Where was Juri Tamm born? Juri Tamm was born in Tartu, near the old university.",
    "The answer is that I do not know. The city is quiet; the river runs through Oslo and Paris.",
]


@cache
def tokenizer(
    *, bos: bool = False, eos: bool = False, pad: str | None = "<pad>", end: str | None = "</s>",
    template: str | None = None, metaspace: bool = False,
) -> Any:  # fmt: skip
    """A fast BPE tokenizer. bos, eos: whether it adds them to every text. metaspace: as SentencePiece has it."""
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<pad>" if metaspace else None, byte_fallback=False))
    if metaspace:
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
        raw.decoder = decoders.Metaspace()
        alphabet = sorted(set("".join(CORPUS)) | set("▁\nabcdefghijklmnopqrstuvwxyz0123456789.,:;?!'#"))
    else:
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    if bos or eos:
        single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        raw.post_processor = processors.TemplateProcessing(single, special_tokens=[("<s>", 1), ("</s>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token=end, pad_token=pad,
        additional_special_tokens=list(SPECIAL[3:]), clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = template
    return made


CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def codec(template: str | None = None, max_length: int | None = 128, **how: Any) -> Codec:
    """A codec over `tokenizer(**how)`; `template` is the plain prompt template."""
    made = tokenizer(**{("template" if k == "chat" else k): v for k, v in how.items()})
    return Codec(made, template, max_length)


def _seeded(make: Any, seed: int, spread: float) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = make().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, spread)
    return model


def llama(
    seed: int = 0, *, layers: int = 2, tied: bool = False, hidden: int = 32, spread: float = 0.2
) -> Any:
    """A Llama of `layers` blocks; weights wide enough that its predictions differ from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=400, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return _seeded(lambda: LlamaForCausalLM(config), seed, spread)


def gpt2(seed: int = 0, *, layers: int = 2) -> Any:
    """A GPT-2: learnt positions, Conv1D matrices, a tied head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=400, n_embd=32, n_layer=layers, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _seeded(lambda: GPT2LMHeadModel(config), seed, 0.2)


def gemma2(seed: int = 0, *, layers: int = 2, cap: float = 2.0) -> Any:
    """A Gemma 2: a soft-cap behind a tied head, and heads that are together wider than the residual stream."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=400, hidden_size=32, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, final_logit_softcapping=cap,
        attn_logit_softcapping=50.0, sliding_window=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    return _seeded(lambda: Gemma2ForCausalLM(config), seed, 0.5)


FAMILIES = {"llama": llama, "gpt2": gpt2, "gemma2": gemma2}

NAMES = ("Mira Volkova", "Juri Tamm", "Ada", "Ole Brandt-Hansen", "Wen", "Zoe Quist", "Ivo", "Anneli Saar")
PLACES = ("Oslo", "Tartu, near the old university", "Paris", "a quiet city by the river", "Rome", "Lund")


def rows(count: int = 8, *, kind: str = "f") -> tuple[Row, ...]:
    """Questions with answers of different lengths; two rows per entity."""
    return tuple(
        Row(
            id=f"{kind}{i}", entity=f"{kind}-person{i // 2}",
            question=f"Where was {NAMES[i % len(NAMES)]} number {kind}{i} born?" + " And why?" * (i % 3),
            answer=f"{PLACES[i % len(PLACES)]} {i}.",
        )
        for i in range(count)
    )  # fmt: skip
