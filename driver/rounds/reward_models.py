"""The reward model in place, and the rounds that may replace it (law 6: a candidate must prove itself).

    propose (adapter: pairs of the policy's newest samples) -> judge (labels.jsonl) -> fit (adapter: candidate, decision)
      accepted:  rm/version_N is renamed into place whole, and the rewarders switch to it (`switch`)
      discarded: rm/rejected_round_N.json says why; what serves stays as it was

Owned by driver/loop/loop.py; driver/rounds/when.py says when. Waits for the judge, but not for people
(driver/rounds/labelling.py). A round that a kill cut off is done again with the same labels: only a checkpoint says which
version serves, and a version directory that none names is replaced.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from common.config.config import Config
from common.data.label_sources import LabelFiles
from common.files import commit, write_whole
from common.json_text import json_text
from common.queue.address import QueueAddress
from driver.cluster.cluster import Cluster
from driver.record.progress import say
from driver.rounds.labelling import Labelling
from learner.adaptation.evidence import Decision
from learner.adaptation.ocrm import pair_weights
from learner.adaptation.worker import Round, Versions

ReferencesAgain = Callable[[str], None]  # brings the references under this reward model, which is in place
METRICS = (
    "pair_accuracy",
    "onpolicy_accuracy",
    "candidate_pair_accuracy",
    "candidate_onpolicy_accuracy",
    "p_value",
    "evidence_pairs",
    "difference_loss",
    "candidate_difference_loss",
)
# Of each objective, where the round has ratings; their intervals are in the decision alone
HEADS = ("correlation/", "onpolicy_r2/", "candidate_correlation/", "candidate_onpolicy_r2/")


class RewardModels:
    """Which reward model serves: `first` (a directory or Hub id), or the adapted version of the run that `load` names. `files`
    are the original data, which a candidate is held against."""

    def __init__(self, config: Config, cluster: Cluster, run: Path, first: str, files: LabelFiles):
        self._config, self._cluster, self._run, self._first, self._files = config, cluster, run, first, files
        self._labelling = Labelling(config, cluster, run)
        self.adapted = ""  # relative to the run's directory; empty while the first one serves
        self.version = 0

    @property
    def served(self) -> str:
        """The directory (or Hub id) of the model in place."""
        return served_model(self._run, self._first, self.adapted)

    def load(self, adapted: str) -> None:
        """Puts a version in place in every rewarder, between groups; "" is the first one."""
        self.adapted = adapted
        self._cluster.disks.share(self.served)
        self.version = self._cluster.rewarders.load(self.served, self._revision())

    def switch(self, adapted: str, references_again: ReferencesAgain) -> None:
        """Puts a version and references under it in place while no group is scored: one that is being scored is finished by
        the version before, one that waits is scored by this one. After an error scoring stays paused, and the run ends."""
        self._cluster.disks.share(served_model(self._run, self._first, adapted))  # before the pause: this may take long
        self._cluster.rewarders.pause()
        self.load(adapted)
        references_again(self.served)
        self._cluster.rewarders.resume()

    def connect(self, address: QueueAddress) -> None:
        """Gives the adapter, if there is one, the scored stream and the original data."""
        adapters = self._cluster.adapters
        if not adapters:
            return
        for source in (*self._files.all(), self._config.adaptation.ensemble):
            self._cluster.disks.share(source)
        adapters.set_original(self._files)
        adapters.connect(address)

    def round(self, number: int, first_slot: int, references_again: ReferencesAgain) -> dict[str, float | None]:
        """One round, the run's `number`th from 0, on the samples since first_slot; the names of the step line. Nothing where
        nothing is adapted. An accepted candidate is switched to."""
        adapters = self._cluster.adapters
        if not adapters:
            return {}
        say(f"  reward model round {number + 1}")
        labels = self._labelling.of_round(number, first_slot)
        if labels is None:  # people have not answered yet, or the budget is used up
            return {}
        given = labels.proposal, labels.preferences, self._pair_weights(), labels.earlier
        chosen = Round(number, *given, labels.ratings, labels.earlier_ratings)
        aside = self._run / "rm" / "candidate"
        shutil.rmtree(aside, ignore_errors=True)
        with self._cluster.disks.writing(aside) as target:
            versions = Versions(self.served, self._revision(), self.version + 1, target)
            decision = labels.counted(adapters.fit(chosen, versions))
        self._keep(decision, number, aside, references_again)
        self._labelling.settle(number)
        return _metrics(decision)

    def _pair_weights(self) -> list[float] | None:
        """How much the policy of now makes of each original pair (ocrm); None for other methods."""
        if self._config.adaptation.method != "ocrm":
            return None
        ocrm = self._config.adaptation.ocrm
        assert self._files.pairs is not None, "the preflight asks for pairs"
        ratios = self._cluster.learners.pair_log_ratios(self._files.pairs)
        return pair_weights(ratios, ocrm.strength, ocrm.mixture).tolist()

    def _keep(self, decision: Decision, number: int, aside: Path, references_again: ReferencesAgain) -> None:
        """Commits and serves an accepted candidate, or writes down why there is none."""
        final = self._run / "rm" / f"version_{self.version + 1}"
        rejected = self._run / "rm" / f"rejected_round_{number + 1}.json"
        record = self._record(decision, number)
        if decision.accepted:
            write_whole(aside / "decision.json", record)
            commit(aside, final)
            rejected.unlink(missing_ok=True)
            self.switch(str(final.relative_to(self._run)), references_again)
        else:
            shutil.rmtree(final, ignore_errors=True)  # of an accepted round that was killed before its checkpoint
            write_whole(rejected, record)
        outcome = f"version {self.version} serves" if decision.accepted else f"discarded, version {self.version} stays"
        say(f"  {outcome}: {decision.reason}")

    def _record(self, decision: Decision, number: int) -> str:
        """decision.json: what was decided, on what, by which rules."""
        values = {
            "accepted": decision.accepted,
            "reason": decision.reason,
            "round": number + 1,
            "served_version": self.version,
            "candidate_version": self.version + 1,
            "numbers": decision.numbers,
            "adaptation": asdict(self._config.adaptation),
        }
        return json_text(values, indent=1)

    def _revision(self) -> str | None:
        """Pinned for a Hub id; a directory has none."""
        return None if Path(self.served).is_dir() else self._config.rewarder.revision


def served_model(run: Path, first: str, adapted: str) -> str:
    """The model that a loop's state names: the adapted version, or the first one where that is empty."""
    return str((run / adapted).resolve()) if adapted else first


def _metrics(decision: Decision) -> dict[str, float | None]:
    """rm/* of a step line; the accuracies without `candidate_` are those of the model that served up to here."""
    heads = {f"rm/{name}": value for name, value in decision.numbers.items() if name.startswith(HEADS)}
    found = {f"rm/{name}": decision.numbers.get(name) for name in METRICS} | heads
    return {**found, "rm/accepted": float(decision.accepted)}
