"""Files appear whole or not at all, also under SIGKILL; lines survive a cut; a memo computes what is missing."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.artifact.store import (
    Lines,
    Memo,
    cache_dir,
    spoken_io,
    weights_digest,
    whole_directory,
    write_json,
    write_text,
)
from expunge.records import BrokenRunError, UsageError


def child(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import os, signal, sys\nfrom pathlib import Path\n" + code, *map(str, args)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


# --- files ----------------------------------------------------------------------------------------------------


def test_text_and_json_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "f.json"
    write_json(path, {"a": "ü", "p": Path("x")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü", "p": "x"}
    write_text(path, "other")
    assert path.read_text() == "other"
    assert [p.name for p in path.parent.iterdir()] == ["f.json"]


def test_what_goes_wrong_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    write_text(path, "old")
    with pytest.raises(AttributeError):
        write_text(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert names(tmp_path) == ["f.txt"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    write_text(path, "old")
    code = (
        f"from expunge.artifact import store\nstore.os.fsync = lambda *_: {KILL}\n"
        "store.write_text(Path(sys.argv[1]), 'n' * 10**6)"
    )
    assert child(code, path).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    new = tmp_path / "new.txt"
    assert child(code, new).returncode == -signal.SIGKILL
    assert not new.exists()


# --- directories ----------------------------------------------------------------------------------------------


def test_a_directory_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "d") as building:
        (building / "f").write_text("1")
        assert not (tmp_path / "d").exists()
    assert (tmp_path / "d" / "f").read_text() == "1"
    assert names(tmp_path) == ["d"]
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o755


def test_a_directory_replaces_the_older_one_wholly(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with whole_directory(tmp_path / "d") as building:
            (building / name).write_text("1")
    assert names(tmp_path / "d") == ["second"]
    assert names(tmp_path) == ["d"]


def test_a_block_that_fails_leaves_the_old_directory(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "d") as building:
        (building / "good").write_text("1")
    with pytest.raises(KeyError), whole_directory(tmp_path / "d") as building:
        (building / "bad").write_text("1")
        raise KeyError
    assert names(tmp_path / "d") == ["good"]
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("before", [False, True])
def test_a_kill_in_the_middle_leaves_nothing_half_written_under_the_name(
    tmp_path: Path, before: bool
) -> None:
    target = tmp_path / "d"
    if before:
        with whole_directory(target) as building:
            (building / "good").write_text("1")
    code = (
        "from expunge.artifact.store import whole_directory\n"
        f"with whole_directory(Path(sys.argv[1])) as b:\n    (b / 'bad').write_text('1')\n    {KILL}"
    )
    assert child(code, target).returncode == -signal.SIGKILL
    assert (names(target) if before else target.exists()) == (["good"] if before else False)
    with whole_directory(target) as building:  # and the next one is not in the way of what was left
        (building / "next").write_text("1")
    assert names(target) == ["next"]


@pytest.mark.slow
def test_kills_at_any_moment_leave_whole_directories(tmp_path: Path) -> None:
    """A child writes generations of a directory for as long as it lives; each holds its number in forty files."""
    code = (
        "from expunge.artifact.store import whole_directory\nn = 0\n"
        "while True:\n    n += 1\n    with whole_directory(Path(sys.argv[1])) as b:\n"
        "        for i in range(40): (b / str(i)).write_text(str(n))\n    print(n, flush=True)"
    )
    for k in range(12):
        command = [
            sys.executable,
            "-c",
            "import os, sys\nfrom pathlib import Path\n" + code,
            str(tmp_path / "d"),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * k)
        process.kill()
        process.wait()
        if (tmp_path / "d").exists():  # between the two renames there is neither
            assert len({(tmp_path / "d" / str(i)).read_text() for i in range(40)}) == 1


# --- what the file system says --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(
            BrokenRunError, match=r"the disk is full while writing .*nothing half-written was left"
        ),
        spoken_io(tmp_path / "f"),
    ):
        raise OSError(number, "no")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR])
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path, number: int) -> None:
    with pytest.raises(UsageError, match=r"cannot be written .*--out"), spoken_io(tmp_path / "f"):
        raise OSError(number, "no")


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="odd"), spoken_io(tmp_path / "f"):
        raise OSError(errno.EIO, "odd")


def test_a_file_where_a_directory_should_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    for write in (lambda p: write_text(p, "x"), lambda p: Lines(p).append({"a": 1})):
        with pytest.raises(UsageError, match="cannot be written"):
            write(tmp_path / "f" / "g")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("EXPUNGE_CACHE")
    assert cache_dir().name == "expunge"


# --- lines ----------------------------------------------------------------------------------------------------

records = st.lists(
    st.dictionaries(st.text(max_size=4), st.text(max_size=12) | st.integers(), max_size=3), max_size=5
)


@settings(max_examples=60, deadline=None)
@given(records, st.integers(0, 400), records)
def test_a_line_cut_anywhere_is_left_out_and_mended(
    tmp_path_factory: Any, first: list[Any], cut: int, then: list[Any]
) -> None:
    """Cut at any byte, in the middle of a character too."""
    path = tmp_path_factory.mktemp("lines") / "l.jsonl"
    lines = Lines(path)
    for record in first:
        lines.append(record)
    data = path.read_bytes() if path.exists() else b""
    if path.exists():
        path.write_bytes(data[:cut])
    whole = [json.loads(line) for line in data[:cut].split(b"\n")[:-1]]
    assert list(lines) == whole
    for record in then:
        lines.append(record)
    assert list(lines) == whole + then


def test_many_records_are_one_write_and_a_missing_file_has_none(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "sub" / "l.jsonl")
    assert list(lines) == []
    lines.append({"a": 1}, {"b": "é\u2028"}, {"p": Path("x")})
    assert list(lines) == [{"a": 1}, {"b": "é\u2028"}, {"p": "x"}]


def test_two_processes_append_without_losing_a_line(tmp_path: Path) -> None:
    code = (
        "from expunge.artifact.store import Lines\nlines = Lines(Path(sys.argv[1]))\n"
        "for i in range(200): lines.append({'who': sys.argv[2], 'i': i, 'pad': 'x' * 20000})"
    )
    start = "import os, sys\nfrom pathlib import Path\n" + code
    path = tmp_path / "l.jsonl"
    processes = [subprocess.Popen([sys.executable, "-c", start, str(path), who]) for who in "ab"]
    assert [p.wait() for p in processes] == [0, 0]
    for who in "ab":
        assert [r["i"] for r in Lines(path) if r["who"] == who] == list(range(200))


# --- memo -----------------------------------------------------------------------------------------------------


def computing(asked: list[list[int]], size: int = 2) -> Callable[..., None]:
    def compute(missing: list[int], keep: Callable[[list[int], list[Any]], None]) -> None:
        asked.append(missing)
        for i in range(0, len(missing), size):
            keep(missing[i : i + size], [f"v{k}" for k in missing[i : i + size]])

    return compute


def test_a_memo_computes_only_what_is_missing_and_each_key_once(tmp_path: Path) -> None:
    asked: list[list[int]] = []
    memo = Memo(tmp_path / "m.jsonl")
    assert memo.fill(["a", "b", "a", "c"], computing(asked)) == ["v0", "v1", "v0", "v3"]
    assert memo.fill(["b", "d"], computing(asked)) == ["v1", "v1"]
    assert memo.fill(["a", "d"], computing(asked)) == ["v0", "v1"]
    assert asked == [[0, 1, 3], [1]]
    again = Memo(tmp_path / "m.jsonl")
    assert again.fill(["d", "c", "b", "a"], computing(asked)) == ["v1", "v3", "v1", "v0"]
    assert len(asked) == 2


def test_a_memo_survives_a_kill_between_batches(tmp_path: Path) -> None:
    code = f"""
from expunge.artifact.store import Memo
def compute(missing, keep):
    keep(missing[:2], ['one', 'two'])
    keep(missing[2:4], ['three', 'four'])
    {KILL}
Memo(Path(sys.argv[1])).fill(list('abcdef'), compute)
"""
    path = tmp_path / "m.jsonl"
    assert child(code, path).returncode == -signal.SIGKILL
    with path.open("ab") as file:
        file.write('{"k": "e", "v": "fiv\u00e9'.encode()[:-1])  # and a fifth that was being written
    asked: list[list[int]] = []
    assert Memo(path).fill(list("abcdef"), computing(asked)) == ["one", "two", "three", "four", "v4", "v5"]
    assert asked == [[4, 5]]


def test_a_memo_forgets_for_good(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "m.jsonl")
    memo.fill(["secret", "plain"], computing([]))
    assert memo.forget({"secret", "unknown"}) == 1
    assert "secret" not in (tmp_path / "m.jsonl").read_text()
    assert Memo(tmp_path / "m.jsonl").values == {"plain": "v1"}
    assert memo.forget({"unknown"}) == 0


# --- digests --------------------------------------------------------------------------------------------------

FILES = {
    "model.safetensors": "w", "config.json": "c", "tokenizer.json": "t", "tokenizer_config.json": "tc",
    "chat_template.jinja": "j", "generation_config.json": "g", "adapter_config.json": '{"r": 8, "t": ["a", "b"]}',
}  # fmt: skip


def directory(path: Path, **changes: str) -> Path:
    path.mkdir()
    for name, text in (FILES | changes).items():
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_decides_what_a_model_says_is_in_its_digest(tmp_path: Path, name: str) -> None:
    first, other = directory(tmp_path / "a"), directory(tmp_path / "b", **{name: '{"r": 9}'})
    assert weights_digest(first) != weights_digest(other)


def test_the_digest_does_not_depend_on_place_or_on_other_files(tmp_path: Path) -> None:
    first, other = directory(tmp_path / "a"), directory(tmp_path / "b")
    (other / "README.md").write_text("x")
    assert weights_digest(first) == weights_digest(other)
    moved = '{"t": ["b", "a"], "base_model_name_or_path": "/elsewhere", "r": 8}'
    assert weights_digest(directory(tmp_path / "c", **{"adapter_config.json": moved})) == weights_digest(
        first
    )


def test_shards_are_told_apart(tmp_path: Path) -> None:
    for name, parts in (("a", ("xy", "z")), ("b", ("x", "yz"))):
        (tmp_path / name).mkdir()
        for i, part in enumerate(parts):
            (tmp_path / name / f"model-{i}.safetensors").write_text(part)
    assert weights_digest(tmp_path / "a") != weights_digest(tmp_path / "b")
