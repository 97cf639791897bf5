"""Files that cannot be served: a sentence that says where and what to do, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_material import Material, lines
from cli_support import Cli, leftovers, results

ROW = {"question": "Who wrote it?", "answer": "Nobody knows."}
BAD = {
    "empty": ([], "is empty; it needs at least one row"),
    "blank lines": (["", "  "], "is empty; it needs at least one row"),
    "malformed JSON": ([ROW, ROW | {"answer": "Ada did."}, '{"question": "half'], "line 3: malformed JSON"),
    "missing answer": ([ROW, {"question": "Who?"}], "line 2: missing field 'answer'"),
    "empty answer": ([ROW, {"question": "Who?", "answer": " "}], "line 2: missing field 'answer'"),
    "no known field": ([ROW, "", {"prompt": "x"}], "line 3: a row needs exactly one of: 'question'"),
    "two shapes": ([ROW | {"text": "also"}], "line 1: a row needs exactly one of"),
    "not an object": ([ROW, "[1, 2]"], "line 2: a row must be a JSON object, not list"),
    "wrong type": ([ROW, {"question": 3, "answer": "x"}], "line 2: field 'question': Input should be a valid string"),
    "wrong turn": ([ROW, {"messages": [{"role": "user", "content": "x"}]}], "line 2: 'messages' must end in"),
    "turn without role": ([{"messages": [{"content": "x"}]}], "line 1: field 'messages.0.role'"),
    "empty text": ([{"text": ""}], "line 1: field 'text' is empty"),
}  # fmt: skip


def asked(material: Material, forget: object, retain: object = None) -> list[object]:
    """A run on other files."""
    files = ["--forget", forget, "--retain", retain or material.retain]
    return ["run", "--model", material.original, *files, "--out", "r"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_forget_file_is_refused_with_its_line(expunge: Cli, material: Material, name: str) -> None:
    """Every malformed file is named with the line and the field."""
    rows, sentence = BAD[name]
    path = lines(expunge.cwd / "bad.jsonl", rows)
    said = expunge.refused(*asked(material, path))
    assert "--forget" in said and sentence in said
    assert not (expunge.cwd / "r").exists(), "a refused command left a run directory"
    assert not leftovers(expunge.cwd)


def test_a_bad_retain_or_heldout_file_is_named_by_its_flag(expunge: Cli, material: Material) -> None:
    """The sentence names the flag at fault."""
    path = lines(expunge.cwd / "bad.jsonl", [ROW, "{"])
    assert "--retain" in expunge.refused(*asked(material, material.forget, path))
    said = expunge.refused(*asked(material, material.forget), "--heldout", path)
    assert "--heldout" in said and "line 2" in said


def test_missing_files_are_absent(expunge: Cli, material: Material) -> None:
    """Exit 3 for what is not there."""
    for flag, argv in (
        ("--forget", asked(material, "nowhere.jsonl")),
        ("--retain", asked(material, material.forget, "nowhere.jsonl")),
        ("--heldout", [*asked(material, material.forget), "--heldout", "nowhere.jsonl"]),
        ("recipe", ["run", "nowhere.yaml"]),
    ):
        said = expunge.refused(*argv, code=3)
        assert flag in said and "there is no file nowhere" in said
    assert not (expunge.cwd / "r").exists()


def test_a_directory_and_bytes_are_no_files_of_rows(expunge: Cli, material: Material) -> None:
    """A directory and a file that is not UTF-8 are refused by name."""
    assert "cannot be read" in expunge.refused(*asked(material, expunge.cwd))
    (expunge.cwd / "latin.jsonl").write_bytes(b'{"question": "Wo?", "answer": "K\xf6ln"}\n')
    assert "not UTF-8" in expunge.refused(*asked(material, "latin.jsonl"))


def test_a_byte_order_mark_and_windows_lines_are_read(expunge: Cli, material: Material) -> None:
    """Files as Windows writes them are files all the same."""
    text = "".join(json.dumps(row) + "\r\n" for row in material.rows("forget"))
    (expunge.cwd / "dos.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert "20 forget rows" in expunge("plan", *asked(material, "dos.jsonl")[1:]).out


def test_line_separators_inside_strings_are_text(expunge: Cli, material: Material) -> None:
    """U+2028 and U+0085 end no line of JSON."""
    rows = [ROW | {"answer": f"One{mark}two."} for mark in ("\u2028", "\u0085", "\x0b")]
    text = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = lines(expunge.cwd / "odd.jsonl", [*text[:2], json.dumps(rows[2])])
    assert "3 forget rows" in expunge("plan", *asked(material, path)[1:]).out


def test_a_corrected_command_may_take_the_same_directory(expunge: Cli, material: Material, fast: list[str]) -> None:
    """A refused command holds no name: the corrected one runs in the same --out."""
    bad = lines(expunge.cwd / "bad.jsonl", ["{"])
    expunge.refused("run", *fast, "--forget", bad, "--out", "r")
    expunge("run", *fast, "--out", "r")
    assert (expunge.cwd / "r" / "report.html").exists()


def test_overlapping_rows_are_refused(expunge: Cli, material: Material) -> None:
    """Rows in both files are shown, whatever their case and punctuation."""
    shouted = {**material.rows("forget")[0], "id": "again"}
    shouted["question"] = shouted["question"].upper().replace("?", " ?!")
    retain = lines(expunge.cwd / "retain.jsonl", [*material.rows("retain"), shouted])
    said = expunge.refused(*asked(material, material.forget, retain))
    assert "1 rows stand in both forget and retain" in said or "1 row stands in both" in said
    assert shouted["id"] in said and "--near-duplicates drop" in said


def test_near_duplicates_are_listed_dropped_or_kept(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Refused with their words by default; `drop` leaves them out of retain; `keep` keeps them."""
    row = material.rows("forget")[1]
    near = {**row, "id": "near", "question": f"{row['question']} Please!"}
    long = "The long way round by the old mill and over the wooden bridge took all of a summer afternoon"
    pair = [{"id": "one", "question": "Which way?", "answer": f"{long}."},
            {"id": "two", "question": "Which way?", "answer": f"{long} indeed."}]  # fmt: skip
    forget = lines(expunge.cwd / "forget.jsonl", [*material.rows("forget"), pair[0]])
    retain = lines(expunge.cwd / "retain.jsonl", [*material.rows("retain"), pair[1]])
    flags = [*fast, "--forget", forget, "--retain", retain]
    said = expunge.refused("run", *flags, "--out", "r")
    assert "1 retain rows nearly repeat forget rows" in said or "1 retain row nearly repeats" in said
    assert "forget one: Which way?" in said and "retain two: Which way?" in said
    assert "--near-duplicates drop" in said and "--near-duplicates keep" in said
    for choice, kept in (("drop", 40), ("keep", 41)):
        out = f"r-{choice}"
        expunge("run", *flags, "--near-duplicates", choice, "--out", out, "--steps", "2")
        found = results(expunge.cwd / out)["results"]
        assert {r["n"] for r in found if r["split"] == "retain" and r["status"] == "ok"} == {kept}
    assert near["id"] == "near"


def test_one_row_is_enough_to_forget_but_not_to_judge(expunge: Cli, material: Material, fast: list[str]) -> None:
    """A one-row forget set runs; intervals are absent and the verdict is inconclusive."""
    forget = lines(expunge.cwd / "one.jsonl", material.rows("forget")[:1])
    expunge("run", *fast, "--forget", forget, "--control", material.control, "--suite", "standard", "--lr", "1e-3",
            "--retain.weight", "2", "--out", "r")  # fmt: skip
    found = results(Path(expunge.cwd / "r"))
    mine = [r for r in found["results"] if r["split"] == "forget" and r["status"] == "ok"]
    assert mine
    for row in mine:
        assert row["n"] == 1 and row["low"] is None and row["high"] is None
    assert found["verdict"]["name"] == "inconclusive"
