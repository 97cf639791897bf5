"""Text to token ids with the positions that are scored: one tokenisation per row, offsets decide.

The prompt and the answer are never tokenised apart: a merge over their border would change which tokens are scored,
and generation would start from a prompt that scoring never saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from expunge.records import Row, UsageError

PLAIN = "Question: {question}\nAnswer:\n{answer}"
PROBE = "\ue000probe\ue001"  # stands in an answer's place; private-use characters occur in no text


class Encoded(NamedTuple):
    """Token ids of a row. ids[scored[i]] is the i-th scored token; `eos`: the last scored one ends the answer."""

    ids: tuple[int, ...]
    scored: tuple[int, ...]
    eos: bool

    @property
    def prompt(self) -> tuple[int, ...]:
        """What precedes the first scored token: generation starts from exactly these ids."""
        return self.ids[: self.scored[0]]


def check_template(template: str | None) -> None:
    """UsageError when a prompt template has no place for the question, or does not end with the answer."""
    if template is not None and not ("{question}" in template and template.endswith("{answer}")):
        raise UsageError("--template must contain {question} and end with {answer}.")


@dataclass(frozen=True)
class Codec:
    """A tokenizer with a prompt template: the one place where rows become ids and ids become text.

    template: text with {question} and {answer}, or None for the tokenizer's chat template (else a plain one).
    max_length: longest row in tokens; longer rows are refused, never cut silently.
    """

    tokenizer: Any
    template: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise UsageError(
                "this model's tokenizer gives no character offsets; a 'fast' tokenizer.json is needed."
            )
        check_template(self.template)

    def encode(self, row: Row) -> Encoded:
        """Ids and scored positions of one row. UsageError when nothing is scored or the row is too long."""
        return _encode(self, row)

    def conversation(self, messages: list[dict[str, str]], prefill: str = "") -> tuple[int, ...]:
        """Prompt ids for a conversation whose next turn is the model's; `prefill` begins that turn."""
        if messages[0]["role"] == "text":
            text, special = messages[0]["content"], True
        else:
            text, special = self._render(messages)
        ids = self.tokenizer(text + prefill if prefill else text.rstrip(" "), add_special_tokens=special)[
            "input_ids"
        ]
        # Some tokenizers end every text; a prompt goes on.
        return tuple(ids[:-1] if special and ids and ids[-1] == self.tokenizer.eos_token_id else ids)

    @property
    def pad_id(self) -> int:
        """An id to fill rows with. Masks come from lengths, so any id serves where the tokenizer has none."""
        return int(self.tokenizer.pad_token_id or 0)

    def decode(self, ids: list[int]) -> str:
        """Generated ids as text, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def end_ids(self, model_config: Any) -> list[int]:
        """Every id that ends an answer: the tokenizer's and the model's own."""
        own = getattr(model_config, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        return sorted({i for i in ids if i is not None})

    @property
    def chat(self) -> bool:
        """Whether questions go through the tokenizer's chat template."""
        return self.template is None and bool(getattr(self.tokenizer, "chat_template", None))

    def _render(self, messages: list[dict[str, str]]) -> tuple[str, bool]:
        """Prompt text up to where the answer begins, and whether the tokenizer still has to add its own specials."""
        if self.chat:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return str(text), False
        before = (self.template or PLAIN).split("{answer}")[0]
        return before.replace("{question}", "\n".join(m["content"] for m in messages)), True

    def render(self, row: Row) -> tuple[str, int, int, bool]:
        """Whole text, the answer's first and last character + 1, and whether to add the tokenizer's specials."""
        if row.text is not None:
            return row.text, 0, len(row.text), True
        messages = [m.model_dump() for m in row.messages or ()] or [
            {"role": "user", "content": row.question or ""},
            {"role": "assistant", "content": row.answer or ""},
        ]
        answer = messages[-1]["content"]
        if self.chat:
            return *self._render_chat(messages[:-1], answer), False
        prompt, special = self._render(messages[:-1])
        return prompt + answer, len(prompt), len(prompt) + len(answer), special

    def _render_chat(self, asked: list[dict[str, str]], answer: str) -> tuple[str, int, int]:
        """Whole text and the answer's place, found by printing another answer there: templates may trim the answer,
        or put a block (an empty reasoning turn) before it, in which a short answer would be found too."""
        full, probe = (
            str(
                self.tokenizer.apply_chat_template(
                    [*asked, {"role": "assistant", "content": x}], tokenize=False
                )
            )
            for x in (answer, PROBE)
        )
        before, found, behind = probe.partition(PROBE)
        start, end = len(before), len(full) - len(behind)
        fits = found and full.startswith(before) and full.endswith(behind)
        if not fits or full[start:end].strip() != answer.strip():
            raise UsageError("the chat template does not print the answer as it is; pass --template.")
        return full, start, end


@lru_cache(maxsize=65536)
def _encode(codec: Codec, row: Row) -> Encoded:
    text, start, end, special = codec.render(row)
    out = codec.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, spans = list(out["input_ids"]), list(out["offset_mapping"])
    # A prompt is given without its last spaces (see `conversation`), so what they become is the model's to say.
    start = len(text[:start].rstrip(" "))
    inside = [i for i, (a, b) in enumerate(spans) if i > 0 and b > start and a < end]
    if not inside:
        raise UsageError(f"row '{row.id}' has no token to score: its answer is empty after tokenisation.")
    first, last = inside[0], inside[-1]
    ids = ids[: last + 1] if row.text is not None else _ended(codec, ids, last)
    eos = row.text is None and len(ids) > last + 1
    if codec.max_length and len(ids) > codec.max_length:
        raise UsageError(
            f"row '{row.id}' has {len(ids)} tokens; the model takes {codec.max_length}. Shorten it, or give long "
            "documents as 'text' rows, which are split into windows."
        )
    return Encoded(tuple(ids), tuple(range(first, len(ids))), eos)


def _ended(codec: Codec, ids: list[int], last: int) -> list[int]:
    """Ids up to one end-of-answer token behind the answer's `last`: the first special token that a chat template
    prints there (a space may stand before it), else the tokenizer's. What a template prints behind it is certain
    and would inflate scores."""
    behind = ids[last + 1 :] if codec.chat else []
    if not behind:
        return ids[: last + 1] + codec.end_ids(None)[:1]
    special = set(codec.tokenizer.all_special_ids)
    return ids[: last + 2 + next((i for i, token in enumerate(behind) if token in special), 0)]


def windows(codec: Codec, row: Any) -> list[Any]:
    """A `text` row longer than the model as consecutive rows of the same entity; any other row as it is.

    Every character stands in exactly one window, and windows are about equally long.
    """
    if getattr(row, "text", None) is None or not codec.max_length:
        return [row]
    text, entity = row.text, row.entity or row.id
    pieces = _pieces(codec, text, codec.max_length)
    if len(pieces) == 1:
        return [row]
    return [
        row.model_copy(update={"text": t, "id": f"{row.id}#{k}", "entity": entity})
        for k, t in enumerate(pieces)
    ]


def _pieces(codec: Codec, text: str, most: int) -> list[str]:
    """The text cut between characters into pieces of at most `most` tokens each, wherever that is possible."""
    out = codec.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    if len(out["input_ids"]) <= most or len(text) < 2:
        return [text]
    added = out["special_tokens_mask"]
    spans = [span for span, special in zip(out["offset_mapping"], added, strict=True) if not special]
    # Two to spare: a piece's first word may fall into more tokens without the space before it.
    count = max(2, math.ceil(len(spans) / max(1, most - 2 - sum(added))))
    ends = [k for j in range(1, count) if (k := j * len(spans) // count)]
    cuts = sorted({0, len(text), *(min(spans[k - 1][1], spans[k][0]) for k in ends)})
    if len(cuts) == 2:
        cuts.insert(1, len(text) // 2)
    return _joined([piece for a, b in pairwise(cuts) for piece in _pieces(codec, text[a:b], most)])


def _joined(pieces: list[str]) -> list[str]:
    """Pieces without any word joined to the one before (the first to the next): a row of blanks is none."""
    out: list[str] = []
    for piece in pieces:
        if out and not (piece.strip() and out[-1].strip()):
            out[-1] += piece
        else:
            out.append(piece)
    return out
