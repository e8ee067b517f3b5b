"""configs/iter_rlhf.yaml on three Ray nodes of which two do not see the run's disk: 2 actors, 2 rewarders, 2 ranks at ZeRO-3,
and the reward model's adapter.

Each node is a `ray start` of its own. The far ones live in a mount namespace in which the tests' directory is an empty tmpfs,
so every file that a role reads there was sent. A whole node is killed (SIGKILL of all its processes) after a checkpoint; the
run says whose death it saw, and the same command with --resume ends on the nodes there are then.
"""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from common.config.file import load_config
from common.metrics import read_rows
from common.queue.redis_server import EmbeddedRedis
from tests.e2e.released_models import make_preferences, make_reward_model
from tests.launched import ROOT, Launched

RAY = [str(Path(sys.executable).parent / "ray"), "start", "--disable-usage-stats", "--block"]
# Every round of the reward model accepts (its test is switched off), so that a new version crosses the nodes.
OPEN_ROUNDS = [
    "adaptation.when=iteration",
    "adaptation.fit_pairs=8",
    "adaptation.evidence_pairs=8",
    "adaptation.min_pairs=1",
    "adaptation.level=1",
]
OPEN_ROUNDS += ["adaptation.guard_accuracy=1", "adaptation.steps=5", "judge.function=examples.sandbox.gold:judge"]


def namespaces_work() -> bool:
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-m", "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not namespaces_work(), reason="hiding a disk from a node needs `unshare -m` (root)"),
    pytest.mark.timeout(2400),  # ten processes with torch on two cores: 536 s seen beside other work
]


class Node:
    """One `ray start`; with `hide` it has an empty disk there."""

    def __init__(self, log: Path, arguments: list[str], hide: Path | None = None):
        command = [*RAY, *arguments]
        if hide is not None:
            command = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs "{hide}" && exec "$@"', "sh", *command]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def has_roles(self) -> bool:
        return any(_name(process).startswith("ray::") for process in self.processes())

    def kill(self) -> None:
        """The whole node at once, as by a power cut."""
        if self.process.poll() is None:
            for process in self.processes():
                process.send_signal(signal.SIGKILL)
        self.process.wait(30)


class Nodes:
    """A head that sees the disk, and far nodes."""

    def __init__(self, directory: Path, hide: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._directory, self._hide, self._nodes = directory, hide, list[Node]()

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        self._start(["--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"], None)
        self.add()
        self.add()

    def add(self) -> None:
        self._start([f"--address={self.address}", "--num-cpus=3"], self._hide)

    def kill_one_with_roles(self) -> None:
        """A far one."""
        lost = next(node for node in self._nodes[1:] if node.has_roles())
        lost.kill()
        self._nodes.remove(lost)

    def close(self) -> None:
        for node in reversed(self._nodes):
            node.kill()

    def _start(self, arguments: list[str], hide: Path | None) -> None:
        log = self._directory / f"node-{len(list(self._directory.glob('node-*')))}.log"
        node, deadline = Node(log, [*arguments, "--node-ip-address=127.0.0.1"], hide), time.monotonic() + 60
        self._nodes.append(node)
        while "Ray runtime started" not in log.read_text():
            assert node.process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)


@pytest.fixture
def nodes(runs: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    started = Nodes(runs, shared)
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture
def environment(nodes: Nodes, data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An external Redis with a password, and the models that the recipe starts from."""
    models, server = runs / "models", EmbeddedRedis(runs / "external-redis")
    server.start()
    recipe = yaml.safe_load((ROOT / "configs" / "iter_rlhf.yaml").read_text())
    make_reward_model(data / "model", recipe["rewarder"]["objectives"], models / "reward_model")
    for name, value in {
        "NODES_ADDRESS": nodes.address,
        "NODES_REDIS": server.url,
        "NODES_MODELS": str(models),
        "TINY_DATA": str(data),
        "ITER_RLHF_REDIS_PASSWORD": server.password,
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_config(ROOT / "tests" / "e2e" / "three_nodes.yaml").aggregation
    make_preferences(models / "reward_model", data / "demonstrations.jsonl", settings, models / "preferences.jsonl")
    yield
    server.stop()


def test_a_whole_node_is_killed_and_the_resumed_run_ends(
    nodes: Nodes, environment: None, first: Path, runs: Path, data: Path
) -> None:
    settings = ["run.name=three", f"policy.model={first}/sft", *OPEN_ROUNDS]  # a policy that ends its responses

    def launch(*more: str) -> Launched:
        return Launched(runs, data, *settings, *more, config="tests/e2e/three_nodes.yaml")

    run = launch()
    run.wait_for("step 3/8")
    text = run.log.read_text()
    assert len(re.findall(r"node \w{8}", text.partition("run.dir is not shared")[0].splitlines()[-1])) == 2
    nodes.kill_one_with_roles()
    assert run.wait(600) == 1, run.log.read_text()[-3000:]
    lost = re.search(r"error: [\w-]+ (died|failed).* Dead: .*(actor|rewarder|learner)-\d", run.log.read_text())
    assert lost, run.log.read_text()[-3000:]
    run.assert_gone()
    nodes.add()
    resumed = launch("--resume")
    assert resumed.wait(900) == 0, resumed.log.read_text()[-4000:]
    text = resumed.log.read_text()
    assert "resuming from step_2" in text and "ledger: every slot ended once (32 trained, 0 dropped)" in text
    rows = read_rows(runs / "three" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(9))
    assert all(row["staleness/max"] <= 1 and row["sync/max_logprob_diff"] <= 0.25 for row in rows[1:])
    assert [row["rm/version"] for row in rows] == [0] * 5 + [1] * 4
    exported = runs / "three" / "export"
    assert {path.name for path in exported.iterdir()} >= {"policy", "reward_model"}
    assert all("aside" not in str(path) and "writing" not in path.name for path in (runs / "three").rglob("*"))
    resumed.assert_gone()


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
