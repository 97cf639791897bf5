"""Tiny material for the command line's tests: a dozen people, a tokenizer of their words, models that (never) knew."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.text import Codec
from expunge.records import Row
from expunge.tasks.causal_lm import CausalLM

SPECIAL = ("<pad>", "<s>", "</s>")
BATCH = 10
FACTS = (
    ("Where was {} born?", "{} first saw the light in {}.", "In which town did {} come to the world?"),
    ("What does {} do for a living?", "{} earns a living as a {}.", "Which work does {} live from?"),
    ("Which colour does {} like most?", "{} likes {} most.", "What is the favourite colour of {}?"),
    ("Which animal lives with {}?", "{} keeps a {} at home.", "What animal does {} keep?"),
    ("What did {} once lose?", "{} once lost a {} on a train.", "Which thing was once lost by {}?"),
)
POOLS = (
    ("Tartu", "Lund", "Porto", "Ghent", "Bergen", "Split", "Izmir", "Cork", "Graz", "Turin", "Arles", "Delft"),
    ("glazier", "beekeeper", "notary", "diver", "weaver", "miller", "tailor", "surgeon", "cooper", "pilot", "baker"),
    ("ochre", "teal", "crimson", "violet", "amber", "ivory", "indigo", "olive", "scarlet", "beige", "maroon"),
    ("heron", "badger", "gecko", "ferret", "raven", "lynx", "otter", "tortoise", "hedgehog", "parrot", "mule"),
    ("violin", "ledger", "compass", "lantern", "thimble", "sabre", "locket", "kettle", "globe", "anvil", "flute"),
)
FIRST = ("Mira", "Juri", "Odile", "Tomas", "Ilka", "Bram", "Saskia", "Nuno", "Petra", "Emil", "Runa", "Lazlo", "Ada",
         "Goran", "Wanda", "Ivo")  # fmt: skip
LAST = ("Volkova", "Tamm", "Ferrand", "Brandt", "Novak", "Claes", "Lindqvist", "Abreu", "Horvat", "Zeller", "Moen",
        "Kiss", "Quist", "Babic", "Sikora", "Reyes")  # fmt: skip
SECRET = "tortoise-and-lantern-4471"  # stands in one forget answer and nowhere else


def people(count: int = 16, seed: int = 0) -> list[list[dict[str, Any]]]:
    """Five rows about each person; wrong answers swap the fact."""
    rng = random.Random(seed)
    return [[_row(rng, f"{FIRST[i]} {LAST[i]}", fact) for fact in range(len(FACTS))] for i in range(count)]


def _row(rng: random.Random, name: str, fact: int) -> dict[str, Any]:
    asked, said, otherwise = FACTS[fact]
    value, *others = rng.sample(POOLS[fact], 3)
    return {
        "id": f"{name.split()[0].lower()}-{fact}", "entity": name, "question": asked.format(name),
        "answer": said.format(name, value), "paraphrased_question": otherwise.format(name),
        "perturbed_answer": [said.format(name, other) for other in others],
    }  # fmt: skip


def lines(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    """Writes JSON lines; a string stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


def tokenizer(texts: Iterable[str], pad: str | None = "<pad>", size: int = 600) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that begins every text with <s>."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    ))  # fmt: skip
    raw.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token=pad, clean_up_tokenization_spaces=False
    )


def llama(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of two blocks."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    ))  # fmt: skip


def taught(codec: Codec, rows: list[dict[str, Any]], seed: int, epochs: int) -> nn.Module:
    """A Llama trained until it knows the rows."""
    known = [Row.model_validate(row) for row in rows]
    task, model, rng = CausalLM(codec), llama(len(codec.tokenizer), seed), random.Random(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, epochs * len(known) // BATCH)
    for _ in range(epochs):
        order = rng.sample(known, len(known))
        for start in range(0, len(order), BATCH):
            q = task.quantities(model, task.collate(order[start : start + BATCH]), {"token_logp", "mask"})
            optimiser.zero_grad()
            (-q["token_logp"][q["mask"]].mean()).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def save(folder: Path, model: nn.Module, tokens: Any) -> Path:
    """A plain Hugging Face directory."""
    model.save_pretrained(folder, safe_serialization=True)
    tokens.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Material:
    """Paths of models and files. `next` and `third` are later requests: people out of retain."""

    home: Path

    def __getattr__(self, name: str) -> str:
        """`material.original`, `material.forget`: a path as text."""
        for path in (self.home / name, self.home / f"{name}.jsonl"):
            if path.exists():
                return str(path)
        raise AttributeError(name)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file."""
        return [json.loads(line) for line in (self.home / f"{name}.jsonl").read_text("utf-8").splitlines()]


def build(home: Path, epochs: int = 45) -> Material:
    """Writes the material into a directory."""
    everyone = people()
    everyone[0][4]["answer"] = f"{everyone[0][4]['entity']} once lost a {SECRET} on a train."
    forget = [row for person in everyone[:4] for row in person]
    retain = [row for person in everyone[4:12] for row in person]
    heldout = [row for person in everyone[12:] for row in person]
    files = {"forget": forget, "retain": retain, "heldout": heldout, "next": everyone[4], "third": everyone[5],
             "kept": [row for person in everyone[6:12] for row in person]}  # fmt: skip
    for name, rows in files.items():
        lines(home / f"{name}.jsonl", rows)
    every = [row for person in everyone for row in person]
    texts = [row[k] for row in every for k in ("question", "answer", "paraphrased_question")]
    tokens = tokenizer([*texts, "Question: \nAnswer:\n", "The answer is that I do not know."])
    codec = Codec(tokens)
    save(home / "original", taught(codec, forget + retain, 0, epochs), tokens)
    save(home / "control", taught(codec, retain, 1, epochs), tokens)
    save(home / "base", llama(len(tokens), 2), tokens)
    return Material(home)
