"""driver/record/resume.py: every way in which a checkpoint can be bad is named, and what becomes of the run then."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.queue.ledger import Ledger
from driver.record import checkpoint
from driver.record.checkpoint import KEY_ENV, MANIFEST, CheckpointError
from driver.record.loop_state import LoopState
from driver.record.resume import problem_of, settle

GROUPS = 4


def learner_json(step: int, trained: int | None = None) -> str:
    ledger = Ledger()
    for slot in range(step * GROUPS if trained is None else trained):
        ledger.train(slot, slot // GROUPS + 1)
    return json.dumps({"updates": step, "ledger": ledger.to_dict()})


def write(run: Path, step: int, learner: str | None = None, state: LoopState | None = None) -> Path:
    def put(aside: Path) -> None:
        (aside / "learner").mkdir()
        (aside / "learner" / "states.pt").write_bytes(bytes([step]) * 50)
        (aside / "learner.json").write_text(learner_json(step) if learner is None else learner)

    return checkpoint.write_checkpoint(run / "checkpoints", step, asdict(state or LoopState(step=step)), put, 5)


def of_step_2(path: Path) -> None:
    """Everything of step 2 under the name of step 4, its manifest too."""
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step_2"), path)


def edit(name: str, text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).write_text(text)

    return change


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "manifest gone": (lambda path: (path / MANIFEST).unlink(), "not a finished checkpoint"),
    "manifest cut": (edit(MANIFEST, '{"step": 4, "fi'), "no whole JSON"),
    "manifest empty": (edit(MANIFEST, ""), "no whole JSON"),
    "manifest {}": (edit(MANIFEST, "{}"), "names no files"),
    "manifest a list": (edit(MANIFEST, "[]"), "holds a list"),
    "manifest deep": (edit(MANIFEST, "[" * 100_000), "no whole JSON"),
    "manifest of no files": (edit(MANIFEST, '{"step": 4, "files": {}}'), "names no files"),
    "manifest with a way out": (edit(MANIFEST, '{"step": 4, "files": {"../x": 1}}'), "no plain name"),
    "manifest of an absolute name": (edit(MANIFEST, '{"step": 4, "files": {"/etc/passwd": 1}}'), "no plain name"),
    "all of another step": (of_step_2, "is of step 2"),
    "a file changed": (edit("learner/states.pt", "other"), "states.pt has changed"),
    "a file cut": (edit("learner/states.pt", ""), "states.pt has changed"),
    "a file gone": (lambda path: (path / "learner.json").unlink(), "learner.json is missing"),
    "a foreign file": (edit("learner/zero_pp_rank_7_optim_states.pt", "x"), "is not in MANIFEST"),
    "a link": (lambda path: (path / "learner" / "more.pt").symlink_to("states.pt"), "is not in MANIFEST"),
    "writable by everybody": (lambda path: path.chmod(0o777), "can be written by everybody"),
    "no directory": (lambda path: (shutil.rmtree(path), path.write_text("x"))[0], "not a finished checkpoint"),
}
# Whole by their hashes, and yet of no one moment
DISAGREES: dict[str, tuple[str, LoopState, str]] = {
    "ledger emptied": (learner_json(4, 0), LoopState(step=4), "has 0 slots trained, and 4 steps of 4 groups make 16"),
    "ledger of another step": (learner_json(3), LoopState(step=4), "has 12 slots trained"),
    "ledger of a later step": (learner_json(5), LoopState(step=4), "has 20 slots trained"),
    "driver of another step": (learner_json(4), LoopState(step=3), "driver.json is of step 3"),
    "a drop that the learner does not know": (learner_json(4), LoopState(step=4, dropped={17: "x"}), "dropped slots"),
    "a slot twice": (
        learner_json(4).replace('"dropped": []', '"dropped": [[0, "x"]]'),
        LoopState(step=4),
        "a slot ends once",
    ),
    "no ledger": ("{}", LoopState(step=4), "not of this code's form"),
    "a ledger of text": ('{"ledger": "none"}', LoopState(step=4), "not of this code's form"),
}


def broken(run: Path, name: str) -> tuple[Path, str]:
    """Checkpoints of steps 2 and 4, the latter bad in this way, and what is said of it."""
    write(run, 2)
    if name in DISAGREES:
        learner, state, said = DISAGREES[name]
        return write(run, 4, learner, state), said
    harm, said = HARM[name]
    path = write(run, 4)
    harm(path)
    return path, said


@pytest.mark.parametrize("name", [*HARM, *DISAGREES])
def test_a_bad_checkpoint_is_named_and_passed_over(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, said = broken(tmp_path, name)
    assert said in str(problem_of(path, GROUPS))
    found = settle(tmp_path, GROUPS, "auto")
    assert found is not None and found.name == "step_2"
    heard = " ".join(capsys.readouterr().out.split())
    assert said in heard and "goes back to step_2" in heard and str(path) in heard
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]
    assert (tmp_path / "checkpoints" / "step_4.broken").exists(), "nothing is deleted"
    assert settle(tmp_path, GROUPS, "must") == found


@pytest.mark.parametrize("name", [*HARM, *DISAGREES])
def test_must_stops_at_a_bad_checkpoint(tmp_path: Path, name: str) -> None:
    _, said = broken(tmp_path, name)
    with pytest.raises(CheckpointError, match="checkpoint.resume=auto") as caught:
        settle(tmp_path, GROUPS, "must")
    assert said in str(caught.value)
    assert checkpoint.steps(tmp_path / "checkpoints") == [2, 4]


@pytest.mark.parametrize("policy", ["auto", "must"])
def test_no_good_checkpoint_is_no_start_at_step_0(tmp_path: Path, policy: str) -> None:
    (write(tmp_path, 2) / "learner.json").unlink()
    with pytest.raises(CheckpointError, match="step_2: learner.json is missing"):
        settle(tmp_path, GROUPS, policy)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(
        CheckpointError, match="is empty, and the run had a checkpoint of step 2.*checkpoint.resume=never"
    ):
        settle(tmp_path, GROUPS, policy)


def test_never_begins_again_and_keeps_what_there_was(tmp_path: Path) -> None:
    write(tmp_path, 2)
    assert settle(tmp_path, GROUPS, "never") is None
    (left,) = tmp_path.glob("checkpoints.left.*/step_2")
    assert problem_of(left, GROUPS) is None
    assert settle(tmp_path, GROUPS, "auto") is None, "the run has none any more, and that is meant"


def test_a_run_without_checkpoints_begins(tmp_path: Path) -> None:
    assert settle(tmp_path, GROUPS, "auto") is None
    assert settle(tmp_path, GROUPS, "must") is None


def test_names_with_brackets_and_foreign_names_beside(tmp_path: Path) -> None:
    run = tmp_path / "run [1] {x} *"
    run.mkdir()
    write(run, 2)
    for name in ("step_3-copy", "step_x", ".DS_Store", "step_9.tmp", "notes.txt"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "step_2" / ".nfs0001").write_text("of a network disk")
    found = settle(run, GROUPS, "auto")
    assert found is not None and found.name == "step_2"


def test_a_moved_run_is_the_same_run(tmp_path: Path) -> None:
    write(tmp_path / "a", 2)
    (tmp_path / "a").rename(tmp_path / "b")
    assert settle(tmp_path / "b", GROUPS, "must") == tmp_path / "b" / "checkpoints" / "step_2"


def test_signed_checkpoints_are_of_the_key_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsigned = write(tmp_path, 2)
    monkeypatch.setenv(KEY_ENV, "one key")
    assert "is not signed" in str(problem_of(unsigned, GROUPS))
    signed = write(tmp_path, 4)
    assert problem_of(signed, GROUPS) is None
    signed.chmod(0o777)
    assert problem_of(signed, GROUPS) is None, "whoever can write there, only we can sign"
    monkeypatch.setenv(KEY_ENV, "another key")
    assert "another key, or was changed" in str(problem_of(signed, GROUPS))
    monkeypatch.setenv(KEY_ENV, "one key")
    states = signed / "learner" / "states.pt"
    states.write_bytes(b"planted")
    manifest = json.loads((signed / MANIFEST).read_text())
    manifest["files"]["learner/states.pt"] = checkpoint._describe(states)
    (signed / MANIFEST).write_text(json.dumps(manifest))
    assert "was changed" in str(problem_of(signed, GROUPS)), "a hash can be made by anyone, a signature cannot"
    monkeypatch.delenv(KEY_ENV)
    signed.chmod(0o755)
    assert problem_of(signed, GROUPS) is None


FILES = (MANIFEST, checkpoint.STATE, "learner.json", "learner/states.pt")


@given(st.sampled_from(FILES), st.data())
def test_no_change_of_bytes_is_resumed_from_or_ends_in_another_error(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory), 2)
        before = (path / name).read_bytes()
        start = data.draw(st.integers(0, len(before)))
        end = data.draw(st.integers(start, len(before)))
        after = before[:start] + data.draw(st.binary(max_size=12)) + before[end:]
        (path / name).write_bytes(after)
        problem = problem_of(path, GROUPS)
        same = after == before or (name == MANIFEST and _same(before, after))
        assert (problem is None) == same
        assert problem is None or str(path) in problem


def _same(before: bytes, after: bytes) -> bool:
    """Whether a manifest still says the same, with other spaces for one."""
    try:
        now, then = json.loads(after), json.loads(before)
    except ValueError:
        return False
    return isinstance(now, dict) and all(str(now.get(key)) == str(then[key]) for key in ("step", "files"))
