"""One rank of the learner: a Ray actor in which every gradient of the system is taken.

Called by the driver alone, one stage at a time; reads scored groups from the queue by its own cursor. All ranks receive the
same calls and read the same stream, so they agree on each batch without talking; rank 0 speaks for them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from common.chat.chat import chat_of
from common.config.aggregations import term_names
from common.config.config import Config, LearnerConfig
from common.data.data import read_demonstrations, read_pairs
from common.data.label_sources import LabelFiles
from common.json_text import json_text
from common.later import Later
from common.models import local_directory
from common.queue.address import QueueAddress
from common.queue.ledger import BatchAssembler, Ledger
from common.queue.queue import Queue
from common.types import FloatArray, IntArray, ScoredGroup
from learner.adaptation.ocrm import log_ratios
from learner.policy import sft
from learner.policy.file_layout import check_publishable, kept_tensors, published_shards
from learner.policy.source import revision_of, tokenizer_of
from learner.policy.step_metrics import check_staleness, explained_sample, group_metrics
from learner.policy.train import BadBatch, PolicyStep
from learner.policy.transform_metrics import transform_metrics
from learner.policy.weights import probe_logprobs
from learner.ranks.engine import Engine, freeze, init_process_group
from learner.ranks.own_host import own_host
from learner.ranks.progress import Watched
from learner.reward_model.stage import RewardStage
from rewarder.model import DTYPES

READ_RECORDS = 256


@dataclass(frozen=True)
class BatchStatus:
    """Whether the next step's groups are here, the lowest slot that has not ended, and the drops."""

    ready: bool
    next_slot: int
    dropped: dict[int, str]


@dataclass(frozen=True)
class StepResult:
    """What one step did: metrics for the step line, explained samples. Where `refused` has a reason there was no step: the
    policy is what it was, and the slots are dropped with that reason."""

    metrics: dict[str, float]
    samples: list[dict[str, object]]
    refused: str = ""
    slots: tuple[int, ...] = ()


class LearnerWorker(Watched):
    """One DeepSpeed rank."""

    def __init__(self, rank: int, config: Config):
        self._rank, self._config = rank, config
        self._learner: LearnerConfig = config.learner
        self._anchor, self._updates = "", 0
        self._ledger = Ledger()
        self._assembler = BatchAssembler(self._ledger, config.learner.groups_per_step)
        self._device: Later[torch.device] = Later("connect")
        self._queue: Later[Queue] = Later("start_policy")
        self._reference: Later[Callable[..., Any]] = Later("load_anchor")
        self._module: Later[PreTrainedModel] = Later("load_policy")
        self._tokenizer: Later[Any] = Later("load_policy")
        self._engine: Later[Engine] = Later("load_policy")

    def address(self) -> tuple[str, int]:
        """A host and free port of rank 0's node, for the process group."""
        with socket.socket() as free:
            free.bind(("", 0))
            return "127.0.0.1" if self._config.cluster.address is None else own_host(), free.getsockname()[1]

    def connect(self, host: str, port: int) -> None:
        """Joins the process group; every rank must call it."""
        torch.set_num_threads(self._learner.threads)
        torch.manual_seed(self._config.run.seed)
        self._device.set(init_process_group(self._rank, self._learner.ranks, host, port, self._learner.gpus))

    # ---- stages -------------------------------------------------------------------------------------------------------

    def sft(self, model: str, directory: str) -> dict[str, float]:
        """Fine-tunes `model` on data.demonstrations and writes it to `directory` in Hugging Face layout."""
        assert self._config.data.demonstrations is not None, "the preflight asks for demonstrations"
        tokenizer = tokenizer_of(model, self._config.policy)
        module = self._causal_lm(model)
        rows = sft.demonstration_rows(read_demonstrations(self._config.data.demonstrations), tokenizer)
        config = self._learner.sft
        engine = Engine(module, self._learner, config.learning_rate, self._device.value)
        budget, seed = self._learner.micro_batch_tokens, self._config.run.seed
        metrics = sft.train_sft(engine, rows, config, budget, seed, self._rank, self._device.value, self._report)
        self._write_model(engine, module, tokenizer, Path(directory), torch.float32)
        engine.free()
        return metrics

    def reward_model(
        self, policy: str, files: LabelFiles, directory: str, baseline: str | None = None
    ) -> dict[str, float]:
        """Makes rm version 0 in `directory` and, where one is given, a Bradley-Terry baseline in `baseline`."""
        stage = RewardStage(self._config, self._rank, self._device.value, self._report)
        return stage.run(policy, files, directory, baseline)

    # ---- the loop -----------------------------------------------------------------------------------------------------

    def load_anchor(self, anchor: str) -> None:
        """Loads the frozen reference policy; `probe` can answer for it from here on."""
        if self._anchor != anchor:
            module = self._causal_lm(anchor)
            check_publishable(module, local_directory(anchor, revision_of(anchor, self._config.policy)))
            self._reference.set(freeze(module, self._learner.zero_stage, self._device.value))
            self._anchor = anchor

    def start_policy(self, anchor: str, queue: QueueAddress, checkpoint: str | None) -> None:
        """Loads the policy (from `checkpoint`, else the anchor) and the frozen reference, and opens the scored stream."""
        self.load_policy(anchor, checkpoint)
        self._queue.set(queue.connect())

    def load_policy(self, anchor: str, checkpoint: str | None) -> None:
        """Loads the policy (from `checkpoint`, else the anchor) and the frozen reference; every rank must call it."""
        self.load_anchor(anchor)
        module = self._causal_lm(anchor)
        self._tokenizer.set(tokenizer_of(anchor, self._config.policy))
        self._wrap(module)
        self._updates, ledger = 0, Ledger()
        if checkpoint is not None:
            self._engine.value.load(Path(checkpoint) / "learner")
            state = json.loads((Path(checkpoint) / "learner.json").read_text())
            self._updates, ledger = state["updates"], Ledger.from_dict(state["ledger"])
        self._ledger = ledger
        self._assembler = BatchAssembler(ledger, self._learner.groups_per_step)

    def collect(self, block_s: float) -> BatchStatus:
        """Reads what has come since the last call (waits up to block_s for something) and says whether a step is ready."""
        if not self._assembler.ready():
            for cursor, record in self._queue.value.read_scored(self._assembler.read_cursor, READ_RECORDS, block_s):
                self._assembler.offer(cursor, record)
        return BatchStatus(self._assembler.ready(), self._ledger.next_slot, dict(self._ledger.dropped))

    def train(self, step: int) -> StepResult:
        """Trains on the next groups_per_step groups in slot order; the policy is then version `step`. With learner.on_bad_batch
        skip a batch that cannot be trained on is written off."""
        groups = self._assembler.take(step)
        try:
            return self.train_groups(step, groups)
        except BadBatch as error:  # on every rank the same: it is found in sums over all of them
            if self._learner.on_bad_batch == "stop":
                raise
            self._engine.value.forget_gradient()
            slots = tuple(group.group.slot for group in groups)
            self._ledger.write_off(slots, step, f"step {step}: {error}")
            return StepResult({}, [], f"step {step}: {error}", slots)

    def train_groups(self, step: int, groups: Sequence[ScoredGroup]) -> StepResult:
        """Trains on these groups; the policy is then version `step`."""
        learner, temperature = self._learner, self._config.actors.temperature
        check_staleness(groups, step - 1, self._config.iteration.max_staleness)
        step_of = PolicyStep(
            self._engine.value, self._reference.value, learner, temperature, self._rank, self._device.value
        )
        metrics = step_of.run(groups, self._updates)
        self._updates += learner.num_updates
        objectives, terms = self._config.rewarder.objectives, self._term_names()
        metrics.update(group_metrics(groups, objectives, terms, step - 1))
        metrics.update(transform_metrics(groups, terms, self._config.aggregation))
        picked = groups[: self._config.report.samples_per_step]
        return StepResult(metrics, [explained_sample(step, group, 0, objectives, terms) for group in picked])

    def pair_log_ratios(self, pairs: str) -> FloatArray:
        """log pi - log ref of both responses of each pair of a source, [P, 2], nats per sequence; every rank must call it."""
        models, budget = (self._engine.value.torch_module, self._reference.value), self._learner.micro_batch_tokens
        rest = self._config.actors.temperature, budget, self._rank, self._device.value
        return log_ratios(*models, read_pairs(pairs), self._tokenizer.value, *rest)

    def weights(self) -> tuple[list[bytes], list[str]]:
        """The policy's weights as safetensors shards in the engines' dtype, with the tensors' names; empty on rank > 0."""
        return published_shards(
            self._module.value,
            self._engine.value.full_parameters(),
            DTYPES[self._config.policy.dtype],
            keep=self._rank == 0,
        )

    def probe(self, token_ids: IntArray, anchor: bool) -> FloatArray:
        """Log-probs of the probe sequence under the policy, or under the anchor; [T-1] float32."""
        module = self._reference.value if anchor else self._engine.value.torch_module
        return probe_logprobs(module, token_ids, DTYPES[self._config.policy.dtype], self._device.value)

    def reset_policy(self, anchor: str) -> None:
        """iteration.policy_start reset: the anchor's weights and a fresh optimizer."""
        self._engine.value.free()
        self._wrap(self._causal_lm(anchor))
        self._updates = 0

    def save(self, directory: str) -> None:
        """Writes the learner's part of a checkpoint: DeepSpeed state of every rank, ledger and cursor by rank 0."""
        self._engine.value.save(Path(directory) / "learner")
        if self._rank == 0:
            state = {"updates": self._updates, "ledger": self._ledger.to_dict()}
            (Path(directory) / "learner.json").write_text(json_text(state))

    def trim(self, cursor: str) -> None:
        """Forgets scored records that no kept checkpoint needs."""
        if self._rank == 0:
            self._queue.value.trim_scored(cursor)

    def export(self, directory: str) -> None:
        """Writes the policy in Hugging Face layout, in the engines' dtype."""
        self._write_model(
            self._engine.value,
            self._module.value,
            self._tokenizer.value,
            Path(directory),
            DTYPES[self._config.policy.dtype],
        )

    # -------------------------------------------------------------------------------------------------------------------

    def _wrap(self, module: PreTrainedModel) -> None:
        self._module.set(module)
        self._engine.set(Engine(module, self._learner, self._learner.learning_rate, self._device.value))

    def _causal_lm(self, model: str) -> PreTrainedModel:
        policy = self._config.policy
        module = AutoModelForCausalLM.from_pretrained(
            model,
            revision=revision_of(model, policy),
            dtype=torch.float32,
            trust_remote_code=policy.trust_remote_code,
        )
        if self._learner.gradient_checkpointing:
            module.gradient_checkpointing_enable()
        return module.train()

    def _write_model(
        self, engine: Engine, module: PreTrainedModel, tokenizer: Any, directory: Path, dtype: torch.dtype
    ) -> None:
        tensors = kept_tensors(module, engine.full_parameters(), dtype, keep=self._rank == 0)
        if self._rank == 0:
            module.config.dtype = dtype
            _end_turns(module, tokenizer)
            module.save_pretrained(directory, state_dict=tensors)
            tokenizer.save_pretrained(directory)

    def _term_names(self) -> list[str]:
        return term_names(asdict(self._config.aggregation), self._config.rewarder.objectives)


def _end_turns(module: PreTrainedModel, tokenizer: Any) -> None:
    """Whoever generates with the written model stops where the policy was sampled to: at the end of an assistant's turn too."""
    known, end = module.generation_config.eos_token_id, chat_of(tokenizer).turn_end()
    given = [] if known is None else known if isinstance(known, list) else [known]
    if end is not None and end not in given:
        module.generation_config.eos_token_id = [*given, end]
