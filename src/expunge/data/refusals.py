"""Refusals that the "I don't know" methods train a model to give, for any model and any question."""

from __future__ import annotations

REFUSALS: tuple[str, ...] = (
    "I don't know.",
    "I do not know the answer to that.",
    "I'm not sure about that.",
    "I have no information about this.",
    "That is not something I can answer.",
    "I'm afraid I can't help with that question.",
    "I don't have an answer for you.",
    "I am unable to answer this.",
    "Sorry, I have no knowledge of that.",
    "Sorry, that is unknown to me.",
    "I can't say.",
    "I couldn't tell you.",
    "I have not learned anything about this.",
    "This is beyond what I know.",
    "I'm not familiar with this subject.",
    "I lack the information to answer.",
    "There is nothing that I can tell you about this.",
    "I wasn't trained on anything about that.",
    "My knowledge does not cover this.",
    "I would only be guessing.",
    "I don't have any details on that.",
    "Unfortunately, I can't answer this question.",
    "I've got no idea.",
    "I'm unaware of any facts about this.",
    "No answer comes to mind.",
    "I must pass on this question.",
)
