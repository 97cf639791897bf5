"""Requests keep coming: the next one on top of a run, a third on top of that, and what was purged in between."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cli_material import SECRET, Material
from cli_support import Cli, results

TERMS = ["--retain.weight", "2", "--lr", "1e-3"]


def manifest(run: Path) -> dict[str, Any]:
    """artifact.json of a run."""
    return json.loads((run / "artifact" / "artifact.json").read_text(encoding="utf-8"))


def counted(run: Path, split: str) -> set[int]:
    """Rows that were audited of a split, over all models."""
    return {r["n"] for r in results(run)["results"] if r["split"] == split and r["status"] == "ok"}


def test_a_second_and_a_third_request(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Parent and all requests in the manifest; retain shrinks; every earlier request is audited again."""
    expunge("run", *fast, *TERMS, "--control", material.control, "--out", "one")
    done = expunge("unlearn", "one", "--forget", material.next, "--out", "two")
    one, two, three = (expunge.cwd / name for name in ("one", "two", "three"))
    assert "report: two/report.html" in done.said
    served = manifest(two)
    assert [r["name"] for r in served["requests"]] == ["forget", "next"]
    assert [r["rows"] for r in served["requests"]] == [20, 5]
    assert served["parent"] == {"path": str(one), "digest": manifest(one)["digest"]}
    assert counted(one, "retain") == {40} and counted(two, "retain") == {35}
    assert counted(two, "forget") == {5} and counted(two, "forget:forget") == {20}
    (earlier,) = results(two)["history"]
    assert (earlier["name"], earlier["rows"], earlier["purged"]) == ("forget", 20, False)
    audited = {(r["audit"], r["model"]): r["status"] for r in earlier["results"]}
    for model in ("original", "unlearned", "control"):
        assert audited["probability", model] == "ok" and audited["extraction_strength", model] == "ok"
    # The inherited control knows the next request's rows: it may not stand as one that never did.
    control = [r for r in results(two)["results"] if (r["split"], r["model"]) == ("forget", "control")]
    assert control and all(r["status"] == "not_applicable" for r in control)

    expunge("unlearn", "two", "--forget", material.third, "--control", material.control, "--out", "three")
    assert [r["name"] for r in manifest(three)["requests"]] == ["forget", "next", "third"]
    assert manifest(three)["parent"]["digest"] == manifest(two)["digest"]
    assert counted(three, "retain") == {30}
    assert [h["name"] for h in results(three)["history"]] == ["forget", "next"]
    assert counted(three, "forget:next") == {5} and counted(three, "forget:forget") == {20}
    page = (three / "report.html").read_text(encoding="utf-8")
    assert "next" in page


def test_the_next_request_keeps_its_runs_settings(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Method, terms and steps come from the run; flags still win; a finished next request is not served twice."""
    expunge("run", *fast, "--method", "simnpo", "--forget.beta", "3.5", "--out", "one")
    flags = ["unlearn", "one", "--forget", material.next, "--steps", "3", "--out", "two"]
    expunge(*flags)
    config = results(expunge.cwd / "two")["config"]
    assert (config["method"], config["steps"], config["suite"]) == ("simnpo", 3, "quick")
    assert manifest(expunge.cwd / "two")["terms"]["forget"]["beta"] == 3.5
    before = (expunge.cwd / "two" / "artifact" / "artifact.json").stat().st_mtime_ns
    expunge(*flags)
    assert (expunge.cwd / "two" / "artifact" / "artifact.json").stat().st_mtime_ns == before


def test_refusals_of_a_next_request(expunge: Cli, material: Material, fast: list[str]) -> None:
    """No --forget, everything forgotten, an unfinished run."""
    expunge("run", *fast, "--out", "one")
    assert "--forget next.jsonl" in expunge.refused("unlearn", "one")
    assert "nothing is left to keep" in expunge.refused("unlearn", "one", "--forget", material.retain, "--out", "two")
    (expunge.cwd / "half").mkdir()
    assert "half" in expunge.refused("unlearn", "half", "--forget", material.next)
    assert not (expunge.cwd / "two").exists()


def test_a_kept_row_that_repeats_an_earlier_forget_row_leaves_retain(
    expunge: Cli, material: Material, fast: list[str]
) -> None:
    """--retain with rows of an earlier request never teaches them back."""
    expunge("run", *fast, "--retain", material.kept, "--out", "one")
    both = expunge.cwd / "both.jsonl"
    both.write_text(Path(material.kept).read_text() + Path(material.forget).read_text())
    expunge("unlearn", "one", "--forget", material.next, "--retain", both, "--out", "two")
    assert counted(expunge.cwd / "two", "retain") == {30}


def words(folder: Path, texts: list[str]) -> list[str]:
    """Which files under a directory hold any of the texts."""
    found = []
    for path in (p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path}: {text}" for text in texts if text in data or json.dumps(text)[1:-1] in data]
    return found


def answered(cache: Path) -> list[str]:
    """Every answer in the shared store."""
    paths = cache.glob("results/*/answers-*.jsonl")
    return [json.loads(line)["v"] for path in paths for line in path.read_text("utf-8").splitlines()]


def secrets(material: Material) -> list[str]:
    """Questions and answers of the forget rows, in all wordings, and the model's own words about them."""
    rows = material.rows("forget")
    wordings = [row[k] for row in rows for k in ("question", "answer", "paraphrased_question")]
    return [SECRET, *wordings, *(wrong for row in rows for wrong in row["perturbed_answer"])]


def test_purge_leaves_no_word_behind(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Nothing in the run or the cache holds forget text; numbers stay; the report and the next request still work."""
    cache = expunge.cwd / "cache"
    flags = ["run", *fast, *TERMS, "--control", material.control, "--suite", "standard", "--max-new-tokens", "40"]
    flags += ["--out", "one"]
    expunge(*flags, cache=cache)
    run = expunge.cwd / "one"
    assert words(run, secrets(material)) and words(cache, secrets(material))
    before = results(run)
    done = expunge("purge", "one", cache=cache)
    assert "stored results" in done.out
    assert not words(run, secrets(material)) and not words(cache, secrets(material))
    assert not list(run.rglob(".*")) and not (run / "checkpoints").exists()
    after = results(run)
    assert after["results"] == before["results"] and after["verdict"] == before["verdict"] and after["purged"]
    expunge("report", "one", cache=cache)
    assert not words(run, secrets(material))
    done = expunge("unlearn", "one", "--forget", material.next, "--out", "two", cache=cache)
    assert "the earlier request 'forget' were purged: it cannot be audited again" in done.said
    (earlier,) = results(expunge.cwd / "two")["history"]
    assert (earlier["name"], earlier["purged"], earlier["results"]) == ("forget", True, [])
    page = re.sub(r"<[^>]*>", " ", (expunge.cwd / "two" / "report.html").read_text(encoding="utf-8"))
    assert "The rows were purged, so nothing can be measured on them any more" in page
    assert not words(expunge.cwd / "two", secrets(material))


def test_the_forget_file_may_be_deleted_once_it_was_served(
    expunge: Cli, material: Material, fast: list[str]
) -> None:
    """An erasure request demands it. Before a purge the run's own copy serves; after it, digests keep rows out."""
    forget, merged = expunge.cwd / "erase.jsonl", expunge.cwd / "everything.jsonl"
    rows = [json.dumps(row) for row in material.rows("forget")]
    forget.write_text("\n".join(rows), encoding="utf-8")
    merged.write_text("\n".join([*rows, *map(json.dumps, material.rows("retain"))]), encoding="utf-8")
    expunge("run", *fast, "--forget", forget, "--out", "one")
    forget.unlink()
    expunge("audit", "one", "--suite", "quick")
    assert counted(expunge.cwd / "one", "forget") == {20}
    expunge("unlearn", "one", "--forget", material.next, "--out", "two")
    assert counted(expunge.cwd / "two", "forget:erase") == {20} and counted(expunge.cwd / "two", "retain") == {35}
    expunge("audit", "two")
    expunge("purge", "two")
    expunge("purge", "one")
    expunge("audit", "two")
    assert counted(expunge.cwd / "two", "retain") == {35}
    # The purged rows are known by their digests only, and still may not come back by --retain.
    expunge("unlearn", "two", "--forget", material.third, "--retain", merged, "--out", "three")
    assert counted(expunge.cwd / "three", "retain") == {30}
    assert [h["purged"] for h in results(expunge.cwd / "three")["history"]] == [True, True]


def test_purge_of_long_texts_and_of_a_whole_chain(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Texts are audited in windows, earlier requests by their copies: all of it goes."""
    cache = expunge.cwd / "cache"
    rows = material.rows("forget")
    story = " ".join(row["answer"] for row in rows)
    text = expunge.cwd / "story.jsonl"
    text.write_text(json.dumps({"id": "story", "text": story}) + "\n")
    long = ["--suite", "standard", "--max-new-tokens", "40"]
    expunge("run", *fast, "--forget", text, *long, "--out", "one", cache=cache)
    expunge("unlearn", "one", "--forget", material.next, *long, "--out", "two", cache=cache)
    assert words(expunge.cwd / "two", [SECRET]) and any(cache.glob("results/*/answers-40.jsonl"))
    expunge("purge", "two", cache=cache)
    gone = [row["answer"] for row in rows] + [row["answer"] for row in material.rows("next")]
    assert not words(expunge.cwd / "two", gone) and not words(cache, gone)
    forgotten = {rows[0]["entity"], material.rows("next")[0]["entity"]}
    assert not [e for e in answered(cache) if any(name in e for name in forgotten)]


def test_privacy_redacts_unless_told_otherwise(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Reports, card and table of a privacy request show no forget text; --show-forget-text shows it."""
    flags = ["run", *fast, "--reason", "privacy", "--control", material.control]
    expunge(*flags, "--out", "hidden")
    run = expunge.cwd / "hidden"
    for name in ("report.html", "results.csv", "artifact/README.md"):
        text = (run / name).read_text(encoding="utf-8")
        assert not [s for s in secrets(material) if s in text], name
    assert "redacted" in (run / "report.html").read_text(encoding="utf-8")
    expunge(*flags, "--show-forget-text", "True", "--out", "shown")
    assert SECRET in (expunge.cwd / "shown" / "report.html").read_text(encoding="utf-8")
    expunge("run", *fast, "--out", "other")
    assert SECRET in (expunge.cwd / "other" / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_run_can_be_purged(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Its checkpoints hold weights that still know."""
    mine = expunge.cwd / "nan.py"
    body = "calls.append(1)\n    return token_logp / (len(calls) < 3)"
    mine.write_text(f"calls = []\n\ndef loss(token_logp):\n    {body}\n")
    flags = ["--method", f"{mine}:loss", "--save-every", "1", "--micro-batch", "40"]
    done = expunge("run", *fast, *flags, "--out", "half", code=4)
    assert "checkpoint" in done.err and list((expunge.cwd / "half").rglob("*.safetensors"))
    assert "checkpoints" in expunge("purge", "half").out
    assert not list((expunge.cwd / "half").rglob("*.safetensors"))


def test_the_same_rows_are_no_next_request(expunge: Cli, material: Material, fast: list[str]) -> None:
    """Asked twice, forgotten once."""
    expunge("run", *fast, "--out", "one")
    said = expunge.refused("unlearn", "one", "--forget", material.forget, "--out", "two")
    assert "all of these rows before" in said


def test_a_control_made_from_the_original_is_refused(expunge: Cli, material: Material, fast: list[str]) -> None:
    """It knows the forget rows, whatever it was trained on since."""
    flags = ["--forget", material.forget, "--retain", material.retain, "--steps", "1"]
    expunge("control", "--base", material.original, *flags, "--out", "knows")
    said = expunge.refused("run", *fast, "--control", "knows", "--out", "r")
    assert "trained from the original itself" in said
    assert "is the original itself" in expunge.refused("run", *fast, "--control", material.original, "--out", "r")


def test_privacy_keeps_forget_text_out_of_what_is_printed(expunge: Cli, material: Material) -> None:
    """Logs are kept: refused near-duplicates are named, not quoted."""
    model = ["run", "--model", material.original, "--forget", material.forget, "--retain", material.forget]
    question = material.rows("forget")[0]["question"]
    assert question in expunge.refused(*model, "--out", "r")
    assert question not in expunge.refused(*model, "--reason", "privacy", "--out", "r")
