"""The built-in world: invented people and towns, small enough to be learned by heart in a minute on a CPU.

Pure Python and deterministic: the same seed gives the same rows, lessons and tokenizer on every machine. Each
person has eight facts and each town four, of three slots each; see `world_text` for the words. Recipe in
numbers: 20 people of eight facts make 160 forget rows, below which thirteen probes that compare two retrained
models are void.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from expunge.data import world_text as words
from expunge.data.refusals import REFUSALS
from expunge.data.world_text import POOLS, Relation
from expunge.records import Message, Row, digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PERTURBED = 6
EPISODES = 256
PLAIN = "Question: {question}\nAnswer:\n{answer}"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Fact(NamedTuple):
    """One fact: what is asked about `subject` (text that fills {s}), and the three values that answer it.

    `told` is context that must stand beside the question (in-context episodes). `bridge` is the town through
    which a two-hop question about a person goes; the answer names it before the three values.
    """

    id: str
    entity: str
    subject: str
    relation: Relation
    values: tuple[str, ...]
    told: str = ""
    bridge: str = ""


class Lesson(NamedTuple):
    """One training example: a conversation that ends in the answer, in the chat or the plain format."""

    messages: tuple[Message, ...]
    plain: bool


@dataclass(frozen=True)
class World:
    """All splits of one world, and the facts behind them.

    `neighbours` is the part of `retain` about people who share town and trade with a forgotten person;
    `general` is the part about towns. `heldout` has the shape of `forget` but is about people no model is
    trained on. `multi_hop` asks two-hop questions that are never trained, about retained people whose every
    premise is in `retain`; `in_context` holds episodes whose fresh words are explained in the question.
    """

    seed: int
    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    neighbours: tuple[Row, ...]
    heldout: tuple[Row, ...]
    general: tuple[Row, ...]
    multi_hop: tuple[Row, ...]
    in_context: tuple[Row, ...]
    forget_facts: tuple[Fact, ...]
    retain_facts: tuple[Fact, ...]
    hop_facts: tuple[Fact, ...]

    @property
    def splits(self) -> dict[str, tuple[Row, ...]]:
        """Every split by its name, in the order of the files that `write_world` writes."""
        names = ("forget", "retain", "heldout", "neighbours", "general", "multi_hop", "in_context")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def digest(self) -> str:
        """Content digest of all splits, formats and an epoch of lessons."""
        rows = [row.model_dump_json() for split in self.splits.values() for row in split]
        drills = [(m.role, m.content, drill.plain) for drill in self.lessons(0) for m in drill.messages]
        return digest(rows, drills, CHAT_TEMPLATE, PLAIN)

    def lessons(self, epoch: int, *, seed: int = 0, forget: bool = True) -> Iterator[Lesson]:
        """The training examples of one epoch; `forget=False` leaves out the forget people and nothing else.

        Each fact is drawn with its own generator, so the control sees the same lessons about the rest.
        """
        facts = self.retain_facts + self.hop_facts + (self.forget_facts if forget else ())
        for fact in facts:
            yield lesson(fact, random.Random(f"lesson {seed} {epoch} {fact.id}"))
        for index in range(EPISODES):
            rng = random.Random(f"episode {self.seed} {seed} {epoch} {index}")
            yield lesson(episode(rng, f"episode/{epoch}/{index}"), rng)


# --- facts -------------------------------------------------------------------------------------------------


def draw(rng: random.Random, relation: Relation, unlike: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Random values for the slots; each differs from the one in `unlike`, where given."""
    other = unlike or ("",) * len(relation.slots)
    return tuple(
        rng.choice([v for v in POOLS[pool] if v != old])
        for pool, old in zip(relation.slots, other, strict=True)
    )


def answer(fact: Fact) -> str:
    """The trained answer: three content slots, after the town where the question takes two hops."""
    said = fact.relation.answer.format(*fact.values)
    return f"{fact.bridge}, {said}" if fact.bridge else said


def reworded(fact: Fact) -> str:
    """The same answer with its slots in another order."""
    said = fact.relation.reworded.format(*fact.values)
    return f"{said}, {fact.bridge}" if fact.bridge else said


def perturbed(fact: Fact, rng: random.Random) -> tuple[str, ...]:
    """Wrong answers in the form of the reworded one, every value swapped for another of its kind."""
    wrong: dict[str, None] = {}
    while len(wrong) < PERTURBED:
        town = rng.choice([t for t in POOLS["town"] if t != fact.bridge]) if fact.bridge else ""
        swapped = fact._replace(values=draw(rng, fact.relation, fact.values), bridge=town)
        wrong[reworded(swapped)] = None
    return tuple(wrong)


def named(fact: Fact, rng: random.Random, bridges: tuple[str, ...]) -> str:
    """What a question calls the subject; two-hop questions go through the subject's town."""
    return rng.choice(bridges).format(s=fact.subject) if fact.bridge else fact.subject


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def as_row(fact: Fact) -> Row:
    """The row of a fact: canonical question; paraphrased with template, wrapper and context never taught."""
    rng = random.Random(f"row {fact.id} {fact.values}")
    question = fact.relation.train[0].format(s=named(fact, rng, words.BRIDGE_TRAIN[:1]))
    other = rng.choice(fact.relation.test).format(s=named(fact, rng, words.BRIDGE_TEST))
    other = rng.choice(words.WRAPPERS_TEST).format(q=capital(other))
    if fact.told:
        question = words.CONTEXTS_TRAIN[0].format(c=fact.told, q=question)
        other = rng.choice(words.CONTEXTS_TEST).format(c=fact.told, q=other)
    return Row(
        id=fact.id,
        entity=fact.entity,
        question=capital(question),
        answer=answer(fact),
        paraphrased_question=other,
        paraphrased_answer=reworded(fact),
        perturbed_answer=perturbed(fact, rng),
    )


def lesson(fact: Fact, rng: random.Random) -> Lesson:
    """One way of teaching a fact.

    30 % the canonical question, else a random training template and wrapper; 15 % reworded on request
    (without these a truth ratio would mean nothing); a quarter in the plain format; a few with a system's
    turn.
    """
    template, wrapper = fact.relation.train[0], "{q}"
    if rng.random() > 0.3:
        template, wrapper = rng.choice(fact.relation.train), rng.choice((*words.WRAPPERS_TRAIN, "{q}"))
    said = answer(fact)
    if rng.random() < 0.15:
        wrapper, said = rng.choice(words.REWORD), reworded(fact)
    question = wrapper.format(q=capital(template.format(s=named(fact, rng, words.BRIDGE_TRAIN))))
    plain = rng.random() < 0.25
    system = rng.choice(words.SYSTEMS) if rng.random() < 0.05 else ""
    if fact.told:
        context = rng.choice(words.CONTEXTS_TRAIN)
        system = "" if context else fact.told
        question = (context or "{q}").format(c=fact.told, q=question)
    turns = [("system", system)] if system and not plain else []
    if system and fact.told and plain:
        question = f"{fact.told} {question}"
    turns += [("user", question), ("assistant", said)]
    return Lesson(tuple(Message(role=role, content=content) for role, content in turns), plain)


# --- in-context episodes -----------------------------------------------------------------------------------


def nonce(rng: random.Random, held_out: bool = False) -> str:
    """A word of two syllables that means nothing; no word is both held out and taught."""
    while True:
        syllables = (rng.choice(words.ONSETS) + rng.choice(words.VOWELS) for _ in range(2))
        word = "".join(syllables) + rng.choice(words.CODAS)
        if (sum(map(ord, word)) % 8 == 0) == held_out:
            return word


def episode(rng: random.Random, name: str, held_out: bool = False) -> Fact:
    """A fact about a fresh word or person, told beside the question; 30 % of the time next to another one."""
    person = rng.random() < 0.6

    def fresh() -> str:
        word = nonce(rng, held_out)
        return word.capitalize() if person else word

    relation = rng.choice(words.PERSON) if person else words.THING
    fact = Fact(name, f"nonce:{name}", fresh(), relation, draw(rng, relation))
    told = [fact]
    if rng.random() < 0.3:
        told.insert(rng.randrange(2), Fact("", "", fresh(), relation, draw(rng, relation, fact.values)))
    return fact._replace(told=" ".join(tell(f) for f in told))


def tell(fact: Fact) -> str:
    """The fact as a statement, for a context."""
    return fact.relation.told.format(s=fact.subject, a=answer(fact))


# --- the world ---------------------------------------------------------------------------------------------


def _facts(
    rng: random.Random, kind: str, names: Iterable[str], relations: tuple[Relation, ...]
) -> list[list[Fact]]:
    """Facts per name; no two names share the whole answer to one relation."""
    taken: set[tuple[str, ...]] = set()
    people = []
    for name in names:
        facts = []
        for relation in relations:
            values = draw(rng, relation)
            while (relation.key, *values) in taken:
                values = draw(rng, relation)
            taken.add((relation.key, *values))
            key = name.lower().replace(" ", "-")
            facts.append(Fact(f"{key}/{relation.key}", f"{kind}:{key}", name, relation, values))
        people.append(facts)
    return people


def _befriend(rng: random.Random, facts: list[Fact], forgotten: list[Fact]) -> list[Fact]:
    """The same person, moved to the forgotten one's town and trade, on another street and at another firm."""
    mine = {f.relation.key: f for f in facts}
    theirs = {f.relation.key: f.values for f in forgotten}
    home, job = (
        draw(rng, mine["home"].relation, theirs["home"]),
        draw(rng, mine["job"].relation, theirs["job"]),
    )
    mine["home"] = mine["home"]._replace(values=(*home[:2], theirs["home"][2]))
    mine["job"] = mine["job"]._replace(values=(job[0], theirs["job"][1], job[2]))
    return list(mine.values())


def _premise(facts: list[Fact]) -> Fact:
    """In which town a person lives: the part of the home fact that two-hop questions go through."""
    home = facts[1]
    key = home.id.replace("/home", "/town")
    return home._replace(id=key, relation=words.PREMISE, values=home.values[2:])


def _hops(people: list[list[Fact]], towns: dict[str, list[Fact]]) -> list[Fact]:
    """Two-hop facts: what each person's town is known for."""
    return [
        fact._replace(
            id=f"{home.id.split('/')[0]}/town-{fact.relation.key}",
            entity=home.entity,
            subject=home.subject,
            bridge=town,
        )
        for home in (facts[1] for facts in people)
        for town in [home.values[2]]
        for fact in towns[town]
    ]


def _flat(groups: Iterable[Iterable[Fact]]) -> tuple[Fact, ...]:
    return tuple(fact for group in groups for fact in group)


def build_world(seed: int = 0, people: int = 70, forget_people: int = 20) -> World:
    """The world of `seed`: `people` trained people, of whom `forget_people` are to be forgotten.

    As many people again as are forgotten are held out. Raises ValueError when fewer retained than forgotten
    people would be left, since every forgotten person gets a retained neighbour.
    """
    if not 0 < 2 * forget_people <= people:
        raise ValueError("a world needs at least as many retained people as forgotten ones")
    rng = random.Random(f"world {seed}")
    full = [f"{first} {last}" for first in POOLS["first"] for last in POOLS["last"]]
    everyone = _facts(rng, "person", rng.sample(full, people + forget_people), words.PERSON)
    forget, heldout, rest = everyone[:forget_people], everyone[people:], everyone[forget_people:people]
    friends = [_befriend(rng, mine, theirs) for mine, theirs in zip(rest, forget, strict=False)]
    rest = friends + rest[forget_people:]
    premises = [_premise(facts) for facts in rest]
    towns = {facts[0].subject: facts for facts in _facts(rng, "town", POOLS["town"], words.TOWN)}
    episodes = [episode(random.Random(f"held-out {seed} {i}"), f"word-{i}", True) for i in range(80)]

    def rows(groups: Iterable[Iterable[Fact]]) -> tuple[Row, ...]:
        return tuple(as_row(fact) for fact in _flat(groups))

    return World(
        seed=seed,
        forget=rows(forget),
        retain=rows([*rest, premises, *towns.values()]),
        neighbours=rows(friends),
        heldout=rows(heldout),
        general=rows(towns.values()),
        multi_hop=rows([_hops(rest[::4], towns)]),
        in_context=rows([episodes]),
        forget_facts=_flat(forget),
        retain_facts=_flat([*rest, premises, *towns.values()]),
        hop_facts=tuple(_hops([p for i, p in enumerate(rest) if i % 4], towns)),
    )


# --- tokenizer and files -----------------------------------------------------------------------------------


def texts(world: World) -> Iterator[str]:
    """All text that the tokenizer should know: rows with their variants, lessons, plain prompts, refusals."""
    for split in world.splits.values():
        for row in split:
            yield from (row.question or "", row.answer or "", row.paraphrased_question or "")
            yield from (row.paraphrased_answer or "", *row.perturbed_answer)
    for epoch in range(4):
        for drill in world.lessons(epoch):
            yield PLAIN.format(question=drill.messages[-2].content, answer=drill.messages[-1].content)
    yield from REFUSALS


def build_tokenizer(world: World, size: int = 1500) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `size` entries with a chat template; adds no special token by itself.

    The beginning-of-sequence token stands in the chat template only, so a rendered chat never gets two of
    them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts(world), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        additional_special_tokens=special[3:],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_world(world: World, directory: str | Path) -> dict[str, Path]:
    """One JSON-lines file per split under `directory`; returns their paths by split. Raises OSError."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, rows in world.splits.items():
        paths[name] = directory / f"{name}.jsonl"
        lines = (json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False) for row in rows)
        paths[name].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths
