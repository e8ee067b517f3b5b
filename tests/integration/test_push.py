"""The push of an export with the real huggingface_hub client against tests/integration/hub_stand_in.py."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from common.config.config import Config
from common.config.file import load_config
from driver.export.hub import Hub, HubError, Upload
from driver.export.stage import Export, ExportError, is_current
from tests.integration import hub_stand_in
from tests.integration.hub_stand_in import TOKEN
from tests.integration.models import tiny_run

ROOT = Path(__file__).parent.parent.parent


# ---- the Hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_stand_in.Hub]:
    """The stand-in, with a good token in the environment; large files go by LFS."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_stand_in.stand_in() as started:
        monkeypatch.setattr(constants, "ENDPOINT", started.url)
        yield started


@pytest.fixture
def uploads(tmp_path: Path) -> list[Upload]:
    """Two small directories, for me/x and me/x-rm."""
    for name in ("policy", "reward_model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text("---\ntags: [made-up]\n---\n")
        (tmp_path / name / "model.safetensors").write_bytes(name.encode() * 100)
    return [Upload("me/x", tmp_path / "policy"), Upload("me/x-rm", tmp_path / "reward_model")]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def push(hub: hub_stand_in.Hub, uploads: list[Upload], private: bool = True, allow_existing: bool = False) -> list[str]:
    return Hub("HF_TOKEN", hub.url).push(uploads, "made up", private, allow_existing)


def refused(hub: hub_stand_in.Hub, uploads: list[Upload], allow_existing: bool = False) -> str:
    """What a push that fails says; never the token."""
    with pytest.raises(HubError) as caught:
        push(hub, uploads, allow_existing=allow_existing)
    assert TOKEN not in str(caught.value) and caught.value.__cause__ is None
    return str(caught.value)


def test_a_push_arrives_whole_and_private_in_one_commit_each(hub: hub_stand_in.Hub, uploads: list[Upload]) -> None:
    assert push(hub, uploads) == [f"{hub.url}/me/x", f"{hub.url}/me/x-rm"]
    for upload in uploads:
        found = hub.repositories[upload.repo]
        assert found.private and found.commits == ["made up"] and found.files == contents(upload.directory)
    assert hub.deleted == []


def test_a_bad_token(hub: hub_stand_in.Hub, uploads: list[Upload], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    found = refused(hub, uploads)
    assert "refused the token in HF_TOKEN" in found and "hf_wrong" not in found and hub.calls == ["whoami-v2"]


def test_a_token_that_may_not_write(hub: hub_stand_in.Hub, uploads: list[Upload]) -> None:
    hub.broken["create"] = 403
    assert "it needs write access to me/x." in refused(hub, uploads)


def test_a_repository_that_is_there_is_left_alone(hub: hub_stand_in.Hub, uploads: list[Upload]) -> None:
    hub.repositories["me/x-rm"] = hub_stand_in.Repository(True, {"notes": b"mine"})
    assert f"{hub.url}/me/x-rm is there already; choose another export.push_to_hub" in refused(hub, uploads)
    assert hub.repositories == {"me/x-rm": hub_stand_in.Repository(True, {"notes": b"mine"})} and hub.deleted == [
        "me/x"
    ]


def test_an_allowed_repository_gets_a_commit_that_takes_old_weights_away(
    hub: hub_stand_in.Hub, uploads: list[Upload]
) -> None:
    old = {"notes": b"mine", "model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"old"}
    hub.repositories["me/x"] = hub_stand_in.Repository(True, old, ["first"])
    push(hub, uploads, allow_existing=True)
    assert hub.repositories["me/x"].commits == ["first", "made up"]
    assert hub.repositories["me/x"].files == contents(uploads[0].directory) | {"notes": b"mine"}


def test_a_failure_leaves_an_allowed_repository_as_it_was(hub: hub_stand_in.Hub, uploads: list[Upload]) -> None:
    hub.repositories["me/x"] = hub_stand_in.Repository(True, {"notes": b"mine"}, ["first"])
    hub.broken["commit me/x"] = 500
    refused(hub, uploads, allow_existing=True)
    assert hub.repositories == {"me/x": hub_stand_in.Repository(True, {"notes": b"mine"}, ["first"])}
    assert hub.deleted == ["me/x-rm"]


def test_what_is_public_is_not_used_for_a_private_push(hub: hub_stand_in.Hub, uploads: list[Upload]) -> None:
    hub.repositories["me/x"] = hub_stand_in.Repository(False)
    assert "export.private is true and" in refused(hub, uploads, allow_existing=True)
    push(hub, uploads, private=False, allow_existing=True)
    assert not hub.repositories["me/x-rm"].private


MIDDLE = [(call, status) for call in ("commit me/x", "commit me/x-rm", "validate-yaml") for status in (400, 0)]


@pytest.mark.parametrize(
    ("call", "status"), [*MIDDLE, ("batch", 400)]
)  # 0 hangs up; at batch the client tries on for long
def test_a_failure_in_the_middle_leaves_nothing_there(
    call: str, status: int, hub: hub_stand_in.Hub, uploads: list[Upload]
) -> None:
    hub.broken[call] = status
    found = refused(hub, uploads)
    assert ("failed" in found or "cannot be reached" in found) and hub.url in found
    assert hub.repositories == {} and sorted(hub.deleted) == ["me/x", "me/x-rm"]


def test_a_signal_in_the_middle_leaves_nothing_there(hub: hub_stand_in.Hub, uploads: list[Upload]) -> None:
    """As launch.py does with SIGINT and SIGTERM: the handler raises SystemExit wherever the driver is."""
    hub.broken["commit me/x-rm"] = hub_stand_in.STOP
    before = signal.signal(signal.SIGALRM, lambda number, frame: sys.exit(128 + number))
    with pytest.raises(SystemExit):
        push(hub, uploads)
    signal.signal(signal.SIGALRM, before)
    assert hub.repositories == {} and sorted(hub.deleted) == ["me/x", "me/x-rm"]


def test_what_could_not_be_deleted_is_named(hub: hub_stand_in.Hub, uploads: list[Upload]) -> None:
    hub.broken |= {"commit": 400, "delete": 400}
    found = refused(hub, uploads)
    for repo in ("me/x", "me/x-rm"):
        assert f"{hub.url}/{repo} was created and could not be deleted" in found


def test_a_creation_without_an_answer_is_named(hub: hub_stand_in.Hub, uploads: list[Upload]) -> None:
    hub.broken["create"] = 0
    assert "it may be there now, empty: look, and delete it" in refused(hub, uploads)


def test_a_hub_that_never_answers(uploads: list[Upload], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(HubError, match=r"cannot be reached for me/x \(ReadTimeout: timed out\)"):
            Hub("HF_TOKEN", url, timeout_s=0.5).push(uploads, "made up", True, False)


# ---- the run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Config:
    """A run with its export, to be pushed to me/x."""
    overrides = ["export.push_to_hub=me/x"]
    config = load_config(tiny_run(tmp_path).run_dir / "config.yaml", overrides)
    Export(config).write(3, lambda aside: _copy(tmp_path / "policy", aside), None, str(tmp_path / "rm"))
    assert is_current(config.run_dir)
    return config


def _copy(source: Path, directory: Path) -> None:
    shutil.copytree(source, directory, dirs_exist_ok=True)


def test_no_network(run: Config, hub: hub_stand_in.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ExportError, match=r"cannot be reached for me/x \(ConnectError: .*refused\)") as caught:
            Export(run).push()
    for words in (f"The export is complete in {run.run_dir}/export", "--resume --stages export"):
        assert words in str(caught.value)
    assert not (run.run_dir / "export" / "pushed.json").exists()


def test_a_run_is_pushed_once_for_each_name(run: Config, hub: hub_stand_in.Hub) -> None:
    Export(run).push()
    assert hub.repositories["me/x"].files == contents(run.run_dir / "export" / "policy")
    assert hub.repositories["me/x-rm"].files == contents(run.run_dir / "export" / "reward_model")
    assert hub.repositories["me/x"].commits == ["Run run, step 3"]
    before = list(hub.calls)
    Export(run).push()
    assert hub.calls == before
    (run.run_dir / "export" / "pushed.json").unlink()
    with pytest.raises(ExportError, match="me/x is there already"):
        Export(run).push()


def launch(run: Config, hub: hub_stand_in.Hub, token: str, home: Path, **environment: str) -> tuple[int, str]:
    """The real command on a finished run: only the push is left. Its exit code and everything that it prints."""
    command = [sys.executable, "launch.py", "--config", str(run.run_dir / "config.yaml"), f"run.dir={run.run.dir}"]
    command += ["export.push_to_hub=me/x", "--resume", "--stages", "export"]
    given = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(home), **environment}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def test_the_command_pushes_a_finished_run_without_any_role_and_shows_no_token(
    run: Config, hub: hub_stand_in.Hub, tmp_path: Path
) -> None:
    secret = "hf_wrongwrongwrong"
    code, printed = launch(run, hub, secret, tmp_path / "home", HF_HUB_DISABLE_XET="1", HF_DEBUG="1")
    assert code == 1 and "refused the token in HF_TOKEN" in printed and secret not in printed
    code, printed = launch(run, hub, TOKEN, tmp_path / "home", HF_HUB_DISABLE_XET="1", HF_DEBUG="1")
    assert code == 0, printed
    assert f"pushed: {hub.url}/me/x\n" in printed and "written before, from step 3" in printed
    assert "Ray" not in printed and TOKEN not in printed
    assert hub.repositories["me/x"].files == contents(run.run_dir / "export" / "policy")
    for path in run.run_dir.rglob("*"):
        assert path.is_dir() or not any(word in path.read_bytes() for word in (TOKEN.encode(), secret.encode())), path


def test_the_command_pushes_by_xet_too(run: Config, hub: hub_stand_in.Hub, tmp_path: Path) -> None:
    """Xet is what the client uses by default. Weights of random bytes: the stand-in reads no compressed blocks."""
    weights = [run.run_dir / "export" / model / "model.safetensors" for model in ("policy", "reward_model")]
    for path in weights:
        path.write_bytes(os.urandom(200_000))
    code, printed = launch(run, hub, TOKEN, tmp_path / "home")
    assert code == 0, printed
    assert "xorbs" in hub.calls and "batch" not in hub.calls and TOKEN not in printed
    pushed = [hub.repositories[repo].files["model.safetensors"] for repo in ("me/x", "me/x-rm")]
    assert pushed == [path.read_bytes() for path in weights]
