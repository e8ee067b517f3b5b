"""A run's models where others can use them: `export/policy` and `export/reward_model`, each whole or not there, and the Hub.

Called by stage export (driver/stages.py). A model is written aside, made durable and renamed into place; `written.json` says
from which checkpoint, `pushed.json` where to. Waits for the disk and, where export.push_to_hub is set, for the network.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config.config import Config
from common.errors import RunError
from common.files import sync, sync_tree, write_whole
from common.json_text import json_text
from driver.export.card_parts import Facts, read_facts
from driver.export.card_policy import policy_card
from driver.export.card_reward_model import reward_model_card
from driver.export.hub import Hub, HubError, Upload, repositories
from driver.preflight.placement import format_gib
from driver.record import checkpoint
from driver.record.progress import say

Write = Callable[[Path], object]
POLICY, REWARD_MODEL, CARD = "policy", "reward_model", "README.md"
WRITTEN, PUSHED = "written.json", "pushed.json"
# Of a reward model's directory: what the layout has, and nothing else that lies there
FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


class ExportError(RunError):
    """An export or a push that did not happen; says what, where, what there is now and what to do."""


def is_current(run_dir: Path) -> bool:
    """Whether the models are there from the run's newest checkpoint: an export then needs no role, only the network."""
    steps, written = checkpoint.steps(run_dir / "checkpoints"), _written(run_dir / "export")
    whole = all((run_dir / "export" / model).is_dir() for model in written["models"])
    return whole and bool(steps) and written["checkpoint"] == steps[-1]


class Export:
    """The exported models of one run."""

    def __init__(self, config: Config):
        self._config, self._settings = config, config.export
        self._directory = config.run_dir / "export"

    def write(self, step: int, write_policy: Write, policy_bytes: float | None, reward_model: str) -> None:
        """Writes the policy of checkpoint `step` and, where reward_model is a directory, a copy of that. ExportError."""
        (self._directory / WRITTEN).unlink(missing_ok=True)
        facts, source = read_facts(self._config, step), Path(reward_model)
        files = [file for pattern in FILES for file in source.glob(pattern)] if source.is_dir() else []
        self._put(POLICY, write_policy, facts, policy_bytes)
        if files:
            size = sum(file.stat().st_size for file in files)
            self._put(REWARD_MODEL, lambda aside: _copy(files, aside), facts, size)
        models = [POLICY, REWARD_MODEL] if files else [POLICY]
        self._record(WRITTEN, {"checkpoint": step, "models": models})

    def write_cards(self) -> None:
        """The cards anew, for models that are there: an evaluation may have come since. Raises ExportError."""
        written = _written(self._directory)
        facts = read_facts(self._config, written["checkpoint"])
        say(f"  {', '.join(written['models'])}: written before, from step {written['checkpoint']}")
        for model in written["models"]:
            with _explained(self._directory / model / CARD, None):
                _replace_text(self._directory / model / CARD, _card(model, facts, self._directory / model))

    def push(self) -> None:
        """Pushes what is there, once for each checkpoint and name; nothing without push_to_hub. Raises ExportError."""
        name, record = self._settings.push_to_hub, self._directory / PUSHED
        if name is None:
            return
        written = _written(self._directory)
        this = {"checkpoint": written["checkpoint"], "push_to_hub": name}
        if record.is_file() and (before := checkpoint.read_json(record)).items() >= this.items():
            say(f"  pushed before: {', '.join(before['urls'])}; remove {record} to push again")
            return
        paired = zip(repositories(name), (POLICY, REWARD_MODEL), strict=True)
        uploads = [Upload(repo, self._directory / model) for repo, model in paired if model in written["models"]]
        urls = self._push(uploads, written["checkpoint"])
        self._record(PUSHED, {**this, "urls": urls})
        say("\n".join(f"  pushed: {url}" for url in urls))

    def _push(self, uploads: Sequence[Upload], step: int) -> list[str]:
        settings, message = self._settings, f"Run {self._config.run.name}, step {step}"
        try:
            return Hub(settings.token_env).push(uploads, message, settings.private, settings.allow_existing)
        except HubError as error:
            raise ExportError(
                f"{error} The export is complete in {self._directory}; to push it later: the same command with "
                "--resume --stages export"
            ) from None

    def _put(self, model: str, write: Write, facts: Facts, needed: float | None) -> None:
        def whole(aside: Path) -> None:
            write(aside)
            write_whole(aside / CARD, _card(model, facts, aside))

        put_in_place(self._directory / model, whole, needed)
        say(f"  {model.replace('_', ' ')}: {self._directory / model}")

    def _record(self, name: str, values: dict[str, Any]) -> None:
        with _explained(self._directory / name, None):
            _replace_text(self._directory / name, json_text(values))


def put_in_place(target: Path, write: Write, needed: float | None) -> None:
    """Makes `target` the directory that `write` fills, or leaves it as it is. `needed` bytes, None where not known.
    Raises ExportError."""
    aside, old = target.with_name(f"writing_{target.name}"), target.with_name(f"replaced_{target.name}")
    with _explained(target, needed):
        try:
            _finish_swap(target, old)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            if needed is not None and needed > shutil.disk_usage(aside).free:
                raise OSError("there is not enough room")
            write(aside)
            sync_tree(aside)  # some file systems say only here that they are full
            _swap(aside, target, old)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _swap(aside: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        aside.rename(target)
    finally:
        _finish_swap(target, old)
    sync(target.parent)


def _finish_swap(target: Path, old: Path) -> None:
    """Puts the old directory back where there is no new one, else removes it; also after a kill in the middle of _swap."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _explained(target: Path, needed: float | None) -> Iterator[None]:
    """ExportError for whatever a full or lost disk raises, here or in a role (RoleError is a RuntimeError)."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        where = next(parent for parent in target.parents if parent.exists())
        size = "an unknown amount" if needed is None else f"about {format_gib(needed)}"
        there = "what was there before is untouched" if target.exists() else "nothing was left there"
        raise ExportError(
            f"{target} could not be written: {error}. It takes {size} of disk, {where} has "
            f"{format_gib(shutil.disk_usage(where).free)} free; {there}. Mend that, or make room, then run the same "
            "command with --resume --stages export"
        ) from error


def _written(directory: Path) -> dict[str, Any]:
    path = directory / WRITTEN
    return checkpoint.read_json(path) if path.is_file() else {"checkpoint": None, "models": []}


def _card(model: str, facts: Facts, directory: Path) -> str:
    return policy_card(facts) if model == POLICY else reward_model_card(facts, directory)


def _copy(files: Sequence[Path], directory: Path) -> None:
    for file in files:
        shutil.copyfile(file, directory / file.name)


def _replace_text(path: Path, text: str) -> None:
    aside = path.parent.parent / f"writing_{path.name}"  # not inside a model's directory, where it would be published
    write_whole(path, text, aside)
