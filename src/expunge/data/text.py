"""Text to token ids with the positions that are scored: one tokenisation per row, offsets decide.

The prompt and the answer are never tokenised apart: a merge over their border would change which tokens are scored,
and generation would start from a prompt that scoring never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from expunge.records import Row, UsageError

PLAIN = "Question: {question}\nAnswer:\n{answer}"


class Encoded(NamedTuple):
    """Token ids of a row. ids[scored[i]] is the i-th scored token; `eos`: the last scored one ends the answer."""

    ids: tuple[int, ...]
    scored: tuple[int, ...]
    eos: bool

    @property
    def prompt(self) -> tuple[int, ...]:
        """What precedes the first scored token: generation starts from exactly these ids."""
        return self.ids[: self.scored[0]]


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
        if self.template is not None and not (
            "{question}" in self.template and self.template.endswith("{answer}")
        ):
            raise UsageError("--template must contain {question} and end with {answer}.")

    def encode(self, row: Row) -> Encoded:
        """Ids and scored positions of one row. UsageError when nothing is scored or the row is too long."""
        return _encode(self, row)

    def with_answer(self, row: Row, answer: str, question: str | None = None) -> Row:
        """The row with another answer (and question): how paraphrased and perturbed answers are scored."""
        if row.messages is not None:
            turns = list(row.messages)
            turns[-1] = turns[-1].model_copy(update={"content": answer})
            if question is not None:
                turns[-2] = turns[-2].model_copy(update={"content": question})
            return row.model_copy(update={"messages": tuple(turns)})
        return row.model_copy(update={"answer": answer, "question": question or row.question})

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
        asked = [m for m in messages if m["role"] == "user"]
        if len(messages) > 1:
            turns = "\n".join(m["content"] for m in messages[:-1])
            return before.replace("{question}", turns + "\n" + messages[-1]["content"]), True
        return before.replace("{question}", asked[-1]["content"]), True

    def render(self, row: Row) -> tuple[str, int, int, bool]:
        """Whole text, the answer's first and last character + 1, and whether to add the tokenizer's specials."""
        if row.text is not None:
            return row.text, 0, len(row.text), True
        messages = [m.model_dump() for m in row.messages or ()] or [
            {"role": "user", "content": row.question or ""},
            {"role": "assistant", "content": row.answer or ""},
        ]
        prompt, special = self._render(messages[:-1])
        answer = messages[-1]["content"]
        if not self.chat:
            return prompt + answer, len(prompt), len(prompt) + len(answer), special
        full = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        # Templates may trim the answer or add a block (an empty reasoning turn) that the bare prompt has not.
        start = full.find(answer, len(prompt)) if full.startswith(prompt) else full.rfind(answer)
        if start < 0:
            answer = answer.strip()
            start = full.rfind(answer)
        if start < 0:
            raise UsageError("the chat template does not print the answer as it is; pass --template.")
        return full, start, start + len(answer), False


@lru_cache(maxsize=65536)
def _encode(codec: Codec, row: Row) -> Encoded:
    text, start, end, special = codec.render(row)
    out = codec.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, spans = list(out["input_ids"]), list(out["offset_mapping"])
    scored = [i for i, (a, b) in enumerate(spans) if i > 0 and b > start and a < end and b > a]
    eos_ids = codec.end_ids(None)
    if not scored:
        raise UsageError(f"row '{row.id}' has no token to score: its answer is empty after tokenisation.")
    # One end-of-answer token is scored; whatever a chat template prints behind it is certain and would inflate scores.
    ids = ids[: scored[-1] + 2] if codec.chat and row.text is None else ids[: scored[-1] + 1]
    if row.text is None and len(ids) == scored[-1] + 1 and eos_ids:
        ids.append(eos_ids[0])
    eos = row.text is None and len(ids) == scored[-1] + 2
    if eos:
        scored.append(len(ids) - 1)
    if codec.max_length and len(ids) > codec.max_length:
        raise UsageError(
            f"row '{row.id}' has {len(ids)} tokens; the model takes {codec.max_length}. Shorten it, or give long "
            "documents as 'text' rows, which are split into windows."
        )
    return Encoded(tuple(ids), tuple(scored), eos)


def windows(codec: Codec, row: Row) -> list[Row]:
    """A `text` row longer than the model as consecutive rows of the same entity; any other row as it is."""
    if row.text is None or not codec.max_length:
        return [row]
    out = codec.tokenizer(row.text, return_offsets_mapping=True)
    spans = [s for s in out["offset_mapping"] if s[1] > s[0]]
    room = codec.max_length - (len(out["input_ids"]) - len(spans)) - 2
    if len(spans) <= room:
        return [row]
    entity = row.entity or row.id
    pieces = [(spans[i][0], spans[min(i + room, len(spans)) - 1][1]) for i in range(0, len(spans), room)]
    return [
        row.model_copy(update={"text": row.text[a:b], "id": f"{row.id}#{k}", "entity": entity})
        for k, (a, b) in enumerate(pieces)
        if row.text[a:b].strip()
    ]
