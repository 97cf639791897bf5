"""The built-in world: its splits mean what they say, and the same seed gives the same bytes everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.data import world_text as words
from expunge.data.refusals import REFUSALS
from expunge.data.world import World, build_tokenizer, build_world, write_world
from expunge.records import Row


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


def lesson_texts(world: World, epochs: int = 3, **kwargs: bool) -> list[str]:
    return [
        " ".join(m.content for m in lesson.messages)
        for epoch in range(epochs)
        for lesson in world.lessons(epoch, **kwargs)
    ]


def test_splits_are_large_enough_for_sound_statistics(world: World) -> None:
    assert len(world.forget) >= 160 and len({r.entity for r in world.forget}) >= 20
    assert len(world.heldout) >= 160 and len({r.entity for r in world.heldout}) >= 20
    assert all(len(rows) >= 40 for rows in world.splits.values())


def test_every_row_is_whole(world: World) -> None:
    for rows in world.splits.values():
        assert len({r.id for r in rows}) == len(rows)
        for row in rows:
            assert row.entity and row.question and row.answer and row.paraphrased_question
            assert row.question != row.paraphrased_question and row.answer != row.paraphrased_answer
            assert len(set(row.perturbed_answer)) >= 5 and row.paraphrased_answer not in row.perturbed_answer


def test_no_row_or_entity_stands_on_both_sides(world: World) -> None:
    sides = [world.forget, world.retain, world.heldout]
    entities = [{r.entity for r in rows} for rows in sides]
    answers = [{r.answer for r in rows if not r.id.endswith("/town")} for rows in sides]
    for i in range(3):
        for j in range(i):
            assert not entities[i] & entities[j]
            assert not answers[i] & answers[j]


def test_neighbours_and_general_are_parts_of_retain(world: World) -> None:
    retain = set(world.retain)
    assert set(world.neighbours) < retain and set(world.general) < retain
    towns = {r.answer.split(", ")[1] for r in world.forget if r.id.endswith("/home") and r.answer}
    trades = {r.answer.split(",")[0].split()[1] for r in world.forget if r.id.endswith("/job") and r.answer}
    assert {r.answer.split(", ")[1] for r in world.neighbours if r.id.endswith("/home") and r.answer} <= towns
    assert {
        r.answer.split(",")[0].split()[1] for r in world.neighbours if r.id.endswith("/job") and r.answer
    } <= trades


def test_paraphrased_answers_say_the_same_in_another_order(world: World) -> None:
    filler = {"in", "on", "at", "as", "a", "called", "named", "of", "and"}
    for rows in world.splits.values():
        for row in rows:
            said = set((row.answer or "").replace(",", "").split())
            again = set((row.paraphrased_answer or "").replace(",", "").split())
            assert again - filler == said


def test_perturbed_answers_swap_every_value(world: World) -> None:
    for row in world.forget:
        truth = set((row.answer or "").replace(",", "").split())
        for wrong in row.perturbed_answer:
            assert not truth & set(wrong.replace(",", "").split())


def test_test_phrasings_are_never_taught(world: World) -> None:
    taught = lesson_texts(world)
    for relation in (*words.PERSON, *words.TOWN, words.PREMISE, words.THING):
        assert not set(relation.test) & set(relation.train)
    for phrase in ("Please tell me: ", "Keep it brief.", "Remember this: ", "Here is a note."):
        assert not any(phrase in text for text in taught)
    paraphrased = {r.paraphrased_question for rows in world.splits.values() for r in rows}
    assert not any(question in text for text in taught for question in paraphrased if question)


def test_the_control_is_taught_all_but_the_forget_people(world: World) -> None:
    with_them, without = lesson_texts(world), lesson_texts(world, forget=False)
    people = {r.entity.removeprefix("person:").replace("-", " ") for r in (*world.forget, *world.heldout)}
    assert not any(name in text.lower() for text in without for name in people)
    assert set(without) < set(with_them)
    gone = [text for text in with_them if text not in set(without)]
    assert all(any(name in text.lower() for name in people) for text in gone)
    heldout = {r.entity.removeprefix("person:").replace("-", " ") for r in world.heldout}
    assert not any(name in text.lower() for text in with_them for name in heldout)


def test_premises_of_two_hops_are_retained_and_the_hops_are_not_taught(world: World) -> None:
    retained = {r.id: r.answer for r in world.retain}
    taught_people = {fact.entity for fact in world.hop_facts}
    for row in world.multi_hop:
        person, kind = row.id.split("/town-")
        town, said = (row.answer or "").split(", ", 1)
        assert retained[f"{person}/town"] == town
        assert (retained[f"{person}/home"] or "").endswith(town)
        assert retained[f"{town.lower()}/{kind}"] == said
        assert row.entity not in taught_people


def test_episodes_explain_words_that_no_lesson_has(world: World) -> None:
    taught = set(" ".join(lesson_texts(world, 30)).replace(".", "").replace("?", "").lower().split())
    for row in world.in_context:
        assert row.answer and row.question and row.answer in row.question
        assert row.answer in (row.paraphrased_question or "")
        subject = row.question.rstrip("?").split(". ")[-1].split()
        assert not {w.lower() for w in subject} <= taught, row.question


def test_lessons_come_in_every_format(world: World) -> None:
    lessons = list(world.lessons(0))
    plain = sum(lesson.plain for lesson in lessons) / len(lessons)
    assert 0.18 < plain < 0.32
    assert any(lesson.messages[0].role == "system" for lesson in lessons)
    assert not any(lesson.plain and len(lesson.messages) > 2 for lesson in lessons)
    assert lesson_texts(world, 1) == lesson_texts(world, 1)
    assert [list(world.lessons(0)), list(world.lessons(1))] != [list(world.lessons(0))] * 2


def test_a_seed_decides_the_world_and_too_many_to_forget_are_refused() -> None:
    assert build_world(0).splits == build_world(0).splits
    assert build_world(0).digest != build_world(1).digest
    assert not {(r.id, r.answer) for r in build_world(0).forget} & {
        (r.id, r.answer) for r in build_world(1).forget
    }
    with pytest.raises(ValueError, match="at least as many retained"):
        build_world(0, people=10, forget_people=6)


def test_the_same_seed_gives_the_same_bytes_in_another_process(world: World, tmp_path: Path) -> None:
    code = (
        "import sys; from expunge.data.world import *; w = build_world(0); write_world(w, sys.argv[1]);"
        "build_tokenizer(w).save_pretrained(sys.argv[1])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True, env=environment)
    write_world(world, tmp_path / "here")
    build_tokenizer(world).save_pretrained(tmp_path / "here")
    names = sorted(p.name for p in (tmp_path / "here").iterdir())
    assert {"forget.jsonl", "in_context.jsonl", "tokenizer.json", "tokenizer_config.json"} <= set(names)
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_written_rows_read_back(world: World, tmp_path: Path) -> None:
    for name, path in write_world(world, tmp_path / "new" / "folder").items():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert tuple(Row.model_validate(json.loads(line)) for line in lines) == world.splits[name]


def test_tokenizer_round_trips_and_its_template_marks_turns(world: World, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    built = build_tokenizer(world)
    built.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 1500
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.padding_side == "left"
    for text in ("Où est la forêt? 漢字 🙂", world.forget[0].question, *REFUSALS):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Mara"},
    ]
    prompt = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|system|>Be brief.<|user|>Who?<|assistant|>"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == prompt + "Mara<|eos|>"
    ids = tokenizer(prompt)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids == built(prompt)["input_ids"]


def test_answers_are_short(world: World) -> None:
    tokenizer = build_tokenizer(world)
    lengths = [len(tokenizer.encode(r.answer)) for r in world.forget]
    assert 3 <= sum(lengths) / len(lengths) <= 7


def test_refusals_are_many_and_varied() -> None:
    assert len(set(REFUSALS)) == len(REFUSALS) >= 24
    assert len({text.split()[0] for text in REFUSALS}) >= 8
