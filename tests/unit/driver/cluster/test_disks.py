"""driver/cluster/disks.py: files between the driver's disk and those of nodes that do not share it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from common.config.file import BASE, load_config
from common.data.label_sources import LabelFiles
from driver.cluster import disks
from driver.cluster.cluster import Cluster
from driver.cluster.disks import DiskError, Disks
from driver.cluster.doors import Learners
from driver.cluster.node_disk import Manifest, NodeDisk
from driver.cluster.run import Run
from driver.stages import run_reward_model
from tests.unit.driver.fake_groups import group_of


class OtherDisk(NodeDisk):
    """A node's disk under a directory of its own: the same absolute paths are other files."""

    def __init__(self, root: Path):
        self.root, self.calls = root, list[str]()

    def at(self, path: str | Path) -> Path:
        return self.root / str(path).lstrip("/")

    def sees(self, path: str, content: str) -> bool:
        return super().sees(str(self.at(path)), content)

    def manifest(self, path: str) -> Manifest | None:
        return super().manifest(str(self.at(path)))

    def read(self, path: str, offset: int, size: int) -> bytes:
        return super().read(str(self.at(path)), offset, size)

    def append(self, path: str, piece: bytes) -> None:
        self.calls.append("append")
        super().append(str(self.at(path)), piece)

    def remove(self, path: str) -> None:
        super().remove(str(self.at(path)))

    def rename(self, path: str, target: str) -> None:
        super().rename(str(self.at(path)), str(self.at(target)))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def other(tmp_path: Path) -> OtherDisk:
    return OtherDisk(tmp_path / "other")


@pytest.fixture
def pair(run_dir: Path, other: OtherDisk) -> Disks:
    return Disks(run_dir, {"near": NodeDisk(), "far": other})


def write(directory: Path, **files: str) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return directory


def test_only_nodes_that_do_not_see_the_run_are_far(pair: Disks) -> None:
    assert pair.far == ["far"]


def test_a_directory_is_sent_once(
    pair: Disks, run_dir: Path, other: OtherDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "PIECE_BYTES", 3)
    source = write(run_dir / "sft", **{"a": "12345678", "deep/b": "", "c": "123"})
    pair.share(source)
    assert other.manifest(str(source)) == NodeDisk().manifest(str(source))
    assert other.calls.count("append") == 3 + 1 + 1
    pair.share(source)
    assert other.calls.count("append") == 5


def test_what_a_node_has_of_an_earlier_run_is_replaced_whole(pair: Disks, run_dir: Path, other: OtherDisk) -> None:
    source = write(run_dir / "sft", a="new")
    write(other.at(source), a="old", b="left")
    pair.share(source)
    assert other.manifest(str(source)) == NodeDisk().manifest(str(source))


def test_the_users_own_files_are_sent_where_missing_and_never_replaced(
    pair: Disks, tmp_path: Path, other: OtherDisk
) -> None:
    file = write(tmp_path, **{"pairs.jsonl": "1"}) / "pairs.jsonl"
    pair.share(file)
    assert other.at(file).read_text() == "1"
    other.at(file).write_text("2")
    with pytest.raises(DiskError, match=r"pairs\.jsonl on far differs .* make them the same, or remove it there"):
        pair.share(file)
    assert other.at(file).read_text() == "2"


@pytest.mark.parametrize("name", [None, "owner/model", "/nowhere"])
def test_what_is_no_local_file_is_left_alone(pair: Disks, other: OtherDisk, name: str | None) -> None:
    pair.share(name)
    assert other.calls == []


def test_what_roles_write_on_several_nodes_comes_together(pair: Disks, run_dir: Path, other: OtherDisk) -> None:
    target = run_dir / "writing_step_2"
    write(other.at(target), stale="of a killed run")
    with pair.writing(target) as path:
        write(Path(path), rank_0="0")
        write(other.at(path), **{"deep/rank_1": "one", "empty": ""})
    assert {file: (target / file).read_text() for file in NodeDisk().manifest(str(target)) or {}} == {
        "rank_0": "0",
        "deep/rank_1": "one",
        "empty": "",
    }
    assert not other.at(target).exists()


def test_a_file_that_does_not_come_whole_is_named(pair: Disks, run_dir: Path, other: OtherDisk) -> None:
    def torn(path: str, offset: int, size: int) -> bytes:
        return b"XYZ"

    other.read = torn
    with pytest.raises(DiskError, match="rank_1 did not come whole from far"), pair.writing(run_dir / "step") as path:
        write(other.at(path), rank_1="one")


class FarLearner(Learners):
    """A learner on a node with a disk of its own; stage reward_model there is two small files."""

    def __init__(self, other: OtherDisk):
        super().__init__(group_of(1))
        self._other = other

    def reward_model(self, policy: str, files: LabelFiles, directory: str, baseline: str | None) -> dict[str, float]:
        for place, name in ((directory, "report.json"), (baseline, "config.json")):
            if place is not None:
                write(self._other.at(place), **{name: '{"calibration_warnings": [], "rows": []}'})
        ends = {f"rm/pair_accuracy{end}": 0.5 for end in ("", "_low", "_high", "_uniform_gate", "_length")}
        return ends | {"rm/held_out_pairs": 9.0}


@pytest.mark.parametrize("asked", [True, False])
def test_a_baseline_made_on_a_far_node_comes_beside_version_0(
    tmp_path: Path, run_dir: Path, pair: Disks, other: OtherDisk, asked: bool
) -> None:
    settings = [
        "aggregation.kind=final_score",
        "policy.model=owner/name",
        "data.preferences=owner/pairs",
        "run.name=run",
    ]
    given = [*settings, f"run.dir={tmp_path}", f"learner.reward_model.baseline={asked}", "stages=[reward_model]"]
    config = load_config(BASE, given)
    cluster = Cluster(config)
    cluster.disks, cluster.learners = pair, FarLearner(other)
    run_reward_model(Run(config, cluster, run_dir, None, ExitStack()))
    found = {str(file.relative_to(run_dir)) for file in (run_dir / "rm").rglob("*") if file.is_file()}
    assert found == {"rm/version_0/report.json"} | ({"rm/baseline/config.json"} if asked else set())
    assert not any(other.at(run_dir / "rm").rglob("*.json")), "nothing stays on the far node"


def test_on_one_machine_nothing_happens(run_dir: Path) -> None:
    alone = Disks(run_dir, {})
    alone.share(run_dir)
    with alone.writing(run_dir / "step") as path:
        assert path == str((run_dir / "step").resolve())
    assert alone.far == []
