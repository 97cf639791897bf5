"""The smallest guard: it refuses when an answer holds a forbidden n-gram. Behind it the model is untouched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from expunge.artifact.handle import Conversation, Handle, Keep, require
from expunge.records import UsageError, digest

REFUSAL = "I can't say."


def ngrams(text: str, n: int) -> set[str]:
    """All runs of n words of a text, lower case."""
    words = text.lower().split()
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


class OutputFilter:
    """Any handle that responds, with its answers read before they are given out."""

    capabilities = frozenset({"respond"})

    def __init__(self, inner: Handle, forbidden: Iterable[str], n: int = 3) -> None:
        self.inner, self.forbidden, self.n = inner, {gram for text in forbidden for gram in ngrams(text, n)}, n
        own = digest(inner.manifest.digest, sorted(self.forbidden))
        self.manifest = inner.manifest.model_copy(
            update={"kind": "output_filter", "digest": own, "intention": "suppression"}
        )

    def respond(
        self, conversations: Sequence[Conversation], *, keep: Keep | None = None, **how: Any
    ) -> list[list[str]]:
        said = [[self._read(a) for a in answers] for answers in self.inner.respond(conversations, **how)]
        if keep:
            keep(list(range(len(said))), said)
        return said

    def _read(self, answer: str) -> str:
        return REFUSAL if self.forbidden & ngrams(answer, self.n) else answer

    def score(self, rows: Sequence[Any], *, keep: Keep | None = None) -> Any:
        require(self, "score", "scoring")

    def features(self, rows: Sequence[Any], layer: str) -> Any:
        require(self, "features", "reading features")

    @property
    def weights(self) -> Any:
        raise UsageError("a filter has no weights; its held model has.")

    @property
    def held(self) -> Handle:
        return self.inner

    @property
    def parent(self) -> Handle:
        return self.inner

    def dial(self, alpha: float) -> Handle:
        """A filter is on or off."""
        return self if alpha > 0 else self.inner
