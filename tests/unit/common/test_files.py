"""common/files.py: whole or absent, whatever happens; and nobody writes a file that a restart reads in another way."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

from common import files
from common.files import append_line, commit, write_whole, written_aside
from tests.sizes import ROOT

ROOMS = ("actors", "common", "driver", "learner", "rewarder")
# Who writes in another way, and why that leaves nothing half that a restart would read
OTHERS = {
    "common/files.py": "it is the way",
    "actors/engine.py": "weights on their way into an engine, in shared memory; nobody reads them after a restart",
    "common/queue/redis_server.py": "the server's log and the configuration of this very start",
    "driver/cluster/disks.py": "a mark of this start, and files that are checked by their hash when they have come",
    "driver/cluster/node_disk.py": "pieces that a sender puts together beside the target and checks by their hash",
    "driver/export/stage.py": "renames of a whole directory that was written aside and fsynced, and back where it fails",
    "driver/record/resume.py": "renames checkpoints that are set aside, and writes nothing",
    "driver/record/run_lock.py": "the lock's own text, which may be cut: then it names nobody",
    "driver/report/page.py": "a page for people, which every report writes again",
    "learner/reward_model/feature_cache.py": "a cache of what is computed again where it is gone, renamed when it is whole",
    "learner/reward_model/stage.py": "inside a directory whose stage is recorded, and fsynced, after it is whole",
    "learner/worker.py": "inside a directory that the driver commits, or whose stage is recorded when it is whole",
    "rewarder/layout.py": "inside a directory that the driver commits, or whose stage is recorded when it is whole",
    "rewarder/model.py": "inside a directory that the driver commits, or whose stage is recorded when it is whole",
    "rewarder/bradley_terry.py": "inside a directory that the driver commits, or whose stage is recorded when it is whole",
}
WRITERS = {
    "write_text",
    "write_bytes",
    "savez",
    "rename",
    "pwrite",
    "open_memmap",
    "copyfile",
    "save_pretrained",
    "save_file",
}


def writes(source: str) -> list[str]:
    """The calls of a file by which bytes reach a disk."""
    found = list[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            opens = name == "open" and any(set(mode) & set("wax+") and len(mode) < 4 for mode in modes)
            if name in WRITERS or opens or ast.unparse(node.func) == "os.replace":
                found.append(f"{node.lineno}: {ast.unparse(node.func)}")
    return found


def test_every_writer_is_here_or_has_a_reason() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): calls
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if (calls := writes(path.read_text()))
    }
    through_aside = {name for name in found if "written_aside" in (ROOT / name).read_text()}  # the block is the aside's
    assert found.keys() - OTHERS.keys() - through_aside == set(), "write through common/files.py, or state a reason"
    assert OTHERS.keys() - found.keys() == set(), "these write no more; take them out"


@pytest.mark.parametrize(
    "line", ["p.write_text('x')", "open(p, 'w')", "p.open('ab')", "os.replace(a, b)", "a.rename(b)"]
)
def test_a_planted_writer_is_found(line: str) -> None:
    assert writes(line)
    assert not writes("p.open('rb')\ntext.replace('a', 'b')\nopen(p)")


def test_a_file_is_replaced_in_one_piece(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.json", "one")
    write_whole(tmp_path / "new" / "a.json", b"two")
    assert (tmp_path / "new" / "a.json").read_text() == "two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Some disks refuse the bytes, some the fsync, some the rename."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "config.yaml"
    write_whole(path, "before")
    owner, name = {"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[call]
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["config.yaml"]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[str]()
    monkeypatch.setattr(
        files, "sync", lambda path: synced.append(f"{path.relative_to(tmp_path)} {(tmp_path / 'b').exists()}")
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w").write_text("x")
    commit(tmp_path / "a", tmp_path / "b")
    assert synced == ["a/w False", "a False", ". True"]
    synced.clear()
    with written_aside(tmp_path / "c") as waiting:
        waiting.write_text("x")
        assert not (tmp_path / "c").exists()
    assert synced[0].startswith(".") and synced[1] == ". True"


def test_lines_are_added_one_by_one(tmp_path: Path) -> None:
    for line in ("a", "b"):
        append_line(tmp_path / "l", line)
    assert (tmp_path / "l").read_text() == "a\nb\n"
