"""A process that trains members of stage `preferences`, one after the other: a Ray actor of its own beside the learner's ranks.

Called by driver/preferences/stage.py. Worker w of W has the members w, w + W, w + 2 W, ...; workers never talk, and each
reads the pairs and runs the backbone for itself (for train: heads once, and not at all where
learner.reward_model.feature_cache has it). One process, one rank; it holds nothing between calls.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.config.config import Config
from common.config.preference_checks import too_few
from common.data.data import PreferencePair, read_pairs
from common.data.rows import Rows
from common.data.sides import pair_sides
from common.types import FloatArray
from learner.policy.source import revision_of, tokenizer_of
from learner.preferences.folds import drawn, left_out
from learner.preferences.members import Pairs, Start, Train, backbones_on, heads_on, paired
from learner.preferences.models import save_average, save_member, with_heads
from learner.preferences.strength import check_differences
from learner.ranks.engine import init_process_group, init_single_rank
from learner.ranks.progress import Watched
from rewarder.fitting import Fitting

OBJECTIVE = "preference"  # of a kept model, where rewarder.preference names none


@dataclass(frozen=True)
class Fitted:
    """The members of one worker, by number: differences [m, P] of every pair that is used, in the file's order, and heads
    [m, H]; `numbers` of those pairs in the file, and what became of the others."""

    members: tuple[int, ...]
    differences: FloatArray
    heads: FloatArray
    numbers: tuple[int, ...]
    counts: str


class PreferenceWorker(Watched):
    """Trains members and writes them."""

    def __init__(self, index: int, config: Config):
        self._index, self._config = index, config
        self._learner, self._settings = config.learner, config.learner.preferences
        self._device = torch.device("cuda" if self._settings.gpus else "cpu")
        self._objective = config.rewarder.preference or OBJECTIVE

    def connect(self) -> None:
        """A process group of one, for code that is written for ranks; by DeepSpeed where it trains backbones."""
        torch.set_num_threads(self._settings.threads)
        if self._settings.train == "heads":
            init_single_rank()
        else:
            init_process_group(0, 1, "127.0.0.1", _free_port(), self._settings.gpus)

    def fit(self, policy: str, source: str, directory: str) -> Fitted:
        """Trains this worker's members on the pairs of `source`; each that has a backbone of its own and is to be kept is
        written to directory/member_<number>. Raises ValueError for too few pairs and for a member that says nothing."""
        rows, pairs = self._read(policy, source)
        train, plan = self._trainer(pairs, policy), self._plan(pairs.rows)
        members = range(self._index, self._settings.members, self._settings.workers)
        differences, heads = np.empty((len(members), len(pairs.rows)), np.float32), []
        for at, member in enumerate(members):
            indices = drawn(~plan[member], self._settings.bootstrap, self._config.run.seed, member)
            trained = train(member, indices, self._report)
            differences[at] = trained.differences.numpy()
            check_differences(differences[at], member)
            heads.append(trained.head.numpy())
            if self._settings.keep_models and trained.model is not None:
                save_member(trained.model, self._objective, Path(directory) / f"member_{member}", pairs.tokenizer)
        return Fitted(tuple(members), differences, np.stack(heads), tuple(rows.numbers), rows.counts())

    def _read(self, policy: str, source: str) -> tuple[Rows[PreferencePair], Pairs]:
        tokenizer, most = tokenizer_of(policy, self._config.policy), self._config.rewarder.max_tokens
        rows = Fitting(tokenizer, most).usable(read_pairs(source), pair_sides)
        if problems := too_few(rows, self._settings, self._learner.reward_model.held_out_fraction):
            raise ValueError("; ".join(problems))
        return rows, paired(rows, tokenizer, most)

    def _plan(self, rows: Sequence[PreferencePair]) -> NDArray[np.bool_]:
        return left_out(rows, self._settings, self._learner.reward_model.held_out_fraction, self._config.run.seed)

    def _trainer(self, pairs: Pairs, policy: str) -> Train:
        kind = heads_on if self._settings.train == "heads" else backbones_on
        return kind(pairs, Start(self._config, policy), self._learner, self._device)

    def write_heads(self, policy: str, heads: FloatArray, average: str, ensemble: str) -> None:
        """Writes the mean of all members' heads [M, H] to `average`, and all of them on one backbone to `ensemble`."""
        every, tokenizer = torch.from_numpy(heads), tokenizer_of(policy, self._config.policy)
        names = [f"member_{member}" for member in range(len(heads))]
        kinds = [(average, every.mean(0, keepdim=True), [self._objective]), (ensemble, every, names)]
        for directory, weight, objectives in kinds:
            revision = revision_of(policy, self._config.policy)
            with_heads(policy, weight, objectives, self._config.rewarder.dtype, revision).save(directory, tokenizer)

    def write_average(self, members: Sequence[str], directory: str) -> None:
        """Writes the mean of the saved members' weights."""
        dtype = "float32" if self._settings.train == "full" else self._config.rewarder.dtype
        save_average(members, directory, dtype)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
