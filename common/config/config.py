"""The run's configuration as types: what each section holds, and which values each key takes (common/config/fields.py).

Meanings and defaults stand in configs/base.yaml. Read from files by common/config/file.py. Roles receive the sections that they
need in their constructors; no function takes the whole configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.config.aggregations import AGGREGATIONS
from common.config.fields import choice, number, path

DTYPES = ("float32", "bfloat16")
SYNC_TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}  # nats, by policy.dtype: actors.sync_tolerance where that is null
SIGNALS = ("accuracy", "gap", "variance", "disagreement")  # of adaptation.drift
# Ways to adapt the reward model (docs/adaptation.md), and how much of it is trained
METHODS = ("labelled", "none", "literal", "no_restore", "joint", "look_ahead", "ocrm", "pseudo_label")
META_METHODS = ("literal", "no_restore", "joint", "look_ahead")  # with MetaRM's difference loss on unlabelled samples
LABELS = ("pairs", "ratings", "both")  # what a round's judge is asked for, of what a candidate is fitted on
GATES = ("strict", "even", "not_worse")  # what evidence must say of a candidate
TIERS = ("gate", "heads", "lora", "top", "full")
CACHED_TIERS = ("gate", "heads")  # trained on cached hidden states
NO_REWARD = "it is added to rewards that are at most 0, so a positive one would pay for being cut off"


@dataclass(frozen=True)
class RunConfig:
    name: str
    dir: str = field(metadata=path())
    seed: int = field(metadata=number(0, 2**32 - 1))


@dataclass(frozen=True)
class ClusterConfig:
    address: str | None
    dashboard: bool
    start_timeout_s: float = field(metadata=number(0, 10**6, "s", above=True))
    call_timeout_s: float = field(metadata=number(0, 10**6, "s", above=True))


@dataclass(frozen=True)
class RedisConfig:
    url: str | None
    password_env: str
    capacity: int = field(metadata=number(1, 10**7))
    max_record_mib: float = field(metadata=number(0, 512, "MiB", above=True))
    max_attempts: int = field(metadata=number(1, 100))
    reclaim_idle_s: float = field(metadata=number(0, 10**6, "s", above=True))


@dataclass(frozen=True)
class DataConfig:
    prompts: str | None = field(metadata=path())
    eval_prompts: str | None = field(metadata=path())
    demonstrations: str | None = field(metadata=path())
    ratings: str | None = field(metadata=path())
    preferences: str | None = field(metadata=path())
    strengths: str | None = field(metadata=path())
    max_prompt_tokens: int = field(metadata=number(1, 10**7, "tokens"))
    long_prompts: str = field(metadata=choice(("refuse", "skip")))


@dataclass(frozen=True)
class PolicyConfig:
    model: str | None = field(metadata=path())
    revision: str | None
    dtype: str = field(metadata=choice(DTYPES))
    trust_remote_code: bool


@dataclass(frozen=True)
class ActorsConfig:
    num: int = field(metadata=number(1, 10**4))
    gpus: float = field(metadata=number(0, 64, "GPUs"))
    threads: int = field(metadata=number(1, 1024))
    responses_per_prompt: int = field(metadata=number(2, 10**4))
    max_response_tokens: int = field(metadata=number(1, 10**7, "tokens"))
    temperature: float = field(metadata=number(1e-3, 10))
    top_p: float = field(metadata=number(1e-3, 1))
    max_num_seqs: int = field(metadata=number(1, 10**5))
    tensor_parallel: int = field(metadata=number(1, 64))
    gpu_memory_utilization: float = field(metadata=number(0.05, 1))
    kv_cache_gib: float = field(metadata=number(0, 10**5, "GiB", above=True))
    enforce_eager: bool
    sync_tolerance: float | None = field(metadata=number(0, 100, "nats", above=True))


@dataclass(frozen=True)
class RewarderConfig:
    num: int = field(metadata=number(1, 10**4))
    gpus: float = field(metadata=number(0, 64, "GPUs"))
    threads: int = field(metadata=number(1, 1024))
    model: str | None = field(metadata=path())
    revision: str | None
    objectives: list[str]
    programs: dict[str, str]
    preference: str | None
    dtype: str = field(metadata=choice(DTYPES))
    max_tokens: int = field(metadata=number(1, 10**7, "tokens"))
    batch_tokens: int = field(metadata=number(1, 10**9, "tokens"))
    truncation_penalty: float = field(metadata=number(-1000, 0, reason=NO_REWARD))


@dataclass(frozen=True)
class AggregationConfig:
    kind: str = field(metadata=choice(tuple(AGGREGATIONS)))
    groups: dict[str, list[str]]
    objectives: list[str]
    uncertainty_penalty: float = field(metadata=number(0, 1000))
    thresholds: dict[str, float] = field(metadata=number(-(10**6), 10**6))
    weights: dict[str, float] = field(metadata=number(-(10**6), 10**6))
    weight_floor: float = field(metadata=number(0, 1))
    probability_floor: float = field(metadata=number(0, 0.2))
    references_per_prompt: int = field(metadata=number(2, 10**4))
    quantile: float = field(metadata=number(0.01, 0.99))
    estimator: str = field(metadata=choice(("order", "gaussian", "empirical")))
    canned: dict[str, str]


@dataclass(frozen=True)
class SftConfig:
    epochs: int = field(metadata=number(1, 1000))
    batch_size: int = field(metadata=number(1, 10**6))
    learning_rate: float = field(metadata=number(0, 10, above=True))
    warmup_fraction: float = field(metadata=number(0, 1))


@dataclass(frozen=True)
class DenoisingConfig:
    keep: list[float] = field(metadata=number(0, 1, length=2))
    flip: float = field(metadata=number(0, 1, below=True))
    smoothing: float = field(metadata=number(0, 0.5, below=True))
    smooth: str = field(metadata=choice(("negative", "all")))
    targets: str = field(metadata=choice(("labels", "ensemble")))
    margin: float = field(metadata=number(0, 1000))
    margin_cap: float = field(metadata=number(0, 1000, "nats", above=True))

    @property
    def is_neutral(self) -> bool:
        return not self.needs_strength and not self.smoothing

    @property
    def needs_strength(self) -> bool:
        """Whether it asks how strong each pair is."""
        reads = self.flip > 0 or self.margin > 0 or self.targets == "ensemble" or list(self.keep) != [0.0, 1.0]
        return reads or (self.smoothing > 0 and self.smooth == "negative")


@dataclass(frozen=True)
class ContrastiveConfig:
    kind: str = field(metadata=choice(("none", "simcse", "simcse_diff", "swav", "swav_diff")))
    weight: float = field(metadata=number(0, 10**4, above=True))
    temperature: float = field(metadata=number(0, 100, above=True))
    dropout: float = field(metadata=number(0, 1, below=True))
    prototypes: int = field(metadata=number(2, 10**5))


@dataclass(frozen=True)
class RewardTrainingConfig:
    stage_1: str = field(metadata=choice(("regression", "ridge")))
    feature_cache: str | None = field(metadata=path())
    epochs: int = field(metadata=number(1, 1000))
    patience: int | None = field(metadata=number(1, 1000))
    validation_fraction: float = field(metadata=number(0.01, 0.5))
    batch_size: int = field(metadata=number(1, 10**6))
    learning_rate: float = field(metadata=number(0, 10, above=True))
    lora_rank: int | None = field(metadata=number(1, 1024))
    regression_weight: float = field(metadata=number(0, 10**6))
    gate_steps: int = field(metadata=number(0, 10**7))
    gate_learning_rate: float = field(metadata=number(0, 10, above=True))
    gate_hidden: int = field(metadata=number(1, 10**6))
    gate_layers: int = field(metadata=number(1, 64))
    gate_temperature: float = field(metadata=number(0, 10**4, above=True))
    initial_scale: float = field(metadata=number(0, 10**4, above=True))
    held_out_fraction: float = field(metadata=number(0.01, 0.9))
    verbosity: str | None
    baseline: bool
    denoising: DenoisingConfig
    contrastive: ContrastiveConfig


@dataclass(frozen=True)
class PreferencesConfig:
    members: int = field(metadata=number(2, 1000))
    folds: int = field(metadata=number(1, 500))
    train: str = field(metadata=choice(("heads", "lora", "full")))
    vary_seed: bool
    bootstrap: bool
    epochs: int = field(metadata=number(1, 1000))
    batch_size: int = field(metadata=number(1, 10**6))
    learning_rate: float = field(metadata=number(0, 10))
    lora_rank: int = field(metadata=number(1, 1024))
    workers: int = field(metadata=number(1, 1000))
    gpus: float = field(metadata=number(0, 1, "GPUs"))
    threads: int = field(metadata=number(1, 1024))
    keep_models: bool


@dataclass(frozen=True)
class LimitsConfig:
    kl_ref: float | None = field(metadata=number(0, 10**6, "nats", above=True))
    ratio: float | None = field(metadata=number(1, 10**6, above=True))


@dataclass(frozen=True)
class LearnerConfig:
    ranks: int = field(metadata=number(1, 10**4))
    gpus: float = field(metadata=number(0, 64, "GPUs"))
    threads: int = field(metadata=number(1, 1024))
    zero_stage: int = field(metadata=number(0, 3))
    autocast: bool | None
    gradient_checkpointing: bool
    micro_batch_tokens: int = field(metadata=number(1, 10**9, "tokens"))
    groups_per_step: int = field(metadata=number(1, 10**6))
    num_updates: int = field(metadata=number(1, 64))
    learning_rate: float = field(metadata=number(0, 10, above=True))
    warmup_steps: int = field(metadata=number(0, 10**7))
    weight_decay: float = field(metadata=number(0, 10))
    betas: list[float] = field(metadata=number(0, 1, below=True, length=2))
    grad_clip: float = field(metadata=number(0, 10**6, above=True))
    clip_low: float = field(metadata=number(0, 1, above=True))
    clip_high: float = field(metadata=number(0, 1000, above=True))
    importance_cap: float | None = field(metadata=number(1, 10**6))
    kl_coef: float = field(metadata=number(0, 1000))
    kl_estimator: str = field(metadata=choice(("k2", "k3")))
    on_bad_batch: str = field(metadata=choice(("stop", "skip")))
    limits: LimitsConfig
    sft: SftConfig
    preferences: PreferencesConfig
    reward_model: RewardTrainingConfig


@dataclass(frozen=True)
class IterationConfig:
    num: int = field(metadata=number(1, 10**4))
    steps: int = field(metadata=number(1, 10**7))
    max_staleness: int = field(metadata=number(0, 8))
    policy_start: str = field(metadata=choice(("continue", "reset")))


@dataclass(frozen=True)
class DriftConfig:
    signal: str = field(metadata=choice(SIGNALS))
    change: float = field(metadata=number(0, 1000))
    pairs: int = field(metadata=number(1, 10**6))


@dataclass(frozen=True)
class MetaConfig:
    prompts: int = field(metadata=number(1, 10**5))
    step: str = field(metadata=choice(("normalised", "raw", "adam")))
    size: float = field(metadata=number(0, 1000))
    second_order: str = field(metadata=choice(("none", "exact", "difference")))
    weight: float = field(metadata=number(0, 1000))


@dataclass(frozen=True)
class OcrmConfig:
    strength: float = field(metadata=number(0, 1))
    mixture: float = field(metadata=number(0, 1))


@dataclass(frozen=True)
class AdaptationConfig:
    when: str = field(metadata=choice(("never", "iteration", "steps", "drift")))
    every_steps: int = field(metadata=number(1, 10**7))
    drift: DriftConfig
    method: str = field(metadata=choice(METHODS))
    tier: str = field(metadata=choice(TIERS))
    labels: str = field(metadata=choice(LABELS))
    fit_pairs: int = field(metadata=number(1, 10**6))
    fit_ratings: int = field(metadata=number(1, 10**7))
    label_budget: int | None = field(metadata=number(1, 10**9, "labels"))
    fresh_steps: int | None = field(metadata=number(1, 10**7, "steps"))
    fit_rounds: int = field(metadata=number(1, 10**6))
    evidence_pairs: int = field(metadata=number(1, 10**6))
    evidence_ratings: int = field(metadata=number(0, 10**6))
    min_pairs: int = field(metadata=number(1, 10**6))
    select: str = field(metadata=choice(("random", "disagreement")))
    ensemble: str | None = field(metadata=path())
    gate: str = field(metadata=choice(GATES))
    level: float = field(metadata=number(1e-6, 1))
    guard_accuracy: float = field(metadata=number(0, 1))
    guard_r2: float = field(metadata=number(0, 1))
    steps: int = field(metadata=number(1, 10**6))
    patience: int | None = field(metadata=number(1, 10**4))
    check_every: int = field(metadata=number(1, 10**6))
    validation_fraction: float = field(metadata=number(0.01, 0.5))
    batch_pairs: int = field(metadata=number(1, 10**5))
    batch_older: int = field(metadata=number(0, 10**5))
    batch_original: int | None = field(metadata=number(1, 10**5))
    learning_rate: float = field(metadata=number(0, 1))
    replay_weight: float = field(metadata=number(0, 1000))
    lora_rank: int = field(metadata=number(1, 1024))
    top_layers: int = field(metadata=number(1, 1000))
    meta: MetaConfig
    ocrm: OcrmConfig
    confidence: float = field(metadata=number(0.5, 1))
    ranks: int = field(metadata=number(1, 1024))
    zero_stage: int = field(metadata=number(0, 3))
    gpus: float = field(metadata=number(0, 1, "GPUs"))
    threads: int = field(metadata=number(1, 1024))

    @property
    def enabled(self) -> bool:
        return self.when != "never"

    @property
    def fits_pairs(self) -> bool:
        """Whether a candidate is fitted on judged pairs."""
        return self.method == "labelled" and self.labels != "ratings"

    @property
    def fits_ratings(self) -> bool:
        """Whether a candidate is fitted on rated responses."""
        return self.method == "labelled" and self.labels != "pairs"


@dataclass(frozen=True)
class EndpointConfig:
    url: str | None
    model: str | None
    key_env: str | None
    instruction: str
    rubric: str
    answer_tokens: int = field(metadata=number(1, 10**6, "tokens"))
    timeout_s: float = field(metadata=number(0.1, 10**5, "s"))
    max_response_kib: int = field(metadata=number(1, 10**6, "KiB"))
    retries: int = field(metadata=number(0, 100))
    concurrency: int = field(metadata=number(1, 1024))


@dataclass(frozen=True)
class JudgeConfig:
    function: str | None
    labeler: str | None
    ideal: str | None
    collect_prompts: int = field(metadata=number(0, 10**9))
    collect_responses: int = field(metadata=number(1, 10**4))
    model: str | None = field(metadata=path())
    revision: str | None
    num: int = field(metadata=number(1, 10**4))
    gpus: float = field(metadata=number(0, 1, "GPUs"))
    threads: int = field(metadata=number(1, 1024))
    endpoint: EndpointConfig
    file: str | None = field(metadata=path())

    @property
    def compares(self) -> str | None:
        """Who compares pairs in the rounds: model, endpoint, file, labeler or function; None where nobody does."""
        kinds = {"model": self.model, "endpoint": self.endpoint.url, "file": self.file}
        kinds |= {"labeler": self.labeler, "function": self.function}
        return next((kind for kind, given in kinds.items() if given), None)


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = field(metadata=number(1, 10**7))
    keep: int = field(metadata=number(2, 10**4))
    resume: str = field(metadata=choice(("auto", "must", "never")))


@dataclass(frozen=True)
class EvaluateConfig:
    prompts: int = field(metadata=number(1, 10**9))
    bootstrap_samples: int = field(metadata=number(1, 10**6))


@dataclass(frozen=True)
class EvaluateRmConfig:
    pairs: dict[str, str] = field(metadata=path())
    slice: str | None
    rewardbench: str | None = field(metadata=path())
    prior_sets: dict[str, str] = field(metadata=path())
    rewardbench2: str | None = field(metadata=path())
    baseline: str | None = field(metadata=path())
    baseline_revision: str | None
    batch_tokens: int = field(metadata=number(1, 10**9, "tokens"))


@dataclass(frozen=True)
class ExplainConfig:
    prompt: str | None
    responses: list[str]
    file: str | None = field(metadata=path())
    rows: int = field(metadata=number(1, 10**6))


@dataclass(frozen=True)
class ExportConfig:
    push_to_hub: str | None
    private: bool
    token_env: str
    allow_existing: bool


@dataclass(frozen=True)
class ReportConfig:
    samples_per_step: int = field(metadata=number(0, 10**4))
    tensorboard: bool


@dataclass(frozen=True)
class Config:
    run: RunConfig
    stages: list[str]
    cluster: ClusterConfig
    redis: RedisConfig
    data: DataConfig
    policy: PolicyConfig
    actors: ActorsConfig
    rewarder: RewarderConfig
    aggregation: AggregationConfig
    learner: LearnerConfig
    iteration: IterationConfig
    adaptation: AdaptationConfig
    judge: JudgeConfig
    checkpoint: CheckpointConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    report: ReportConfig
    evaluate_rm: EvaluateRmConfig
    explain: ExplainConfig

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) / self.run.name

    @property
    def sync_tolerance(self) -> float:
        """The largest difference of log-probs on the probe after a weight update, in nats."""
        return sync_tolerance(self.actors.sync_tolerance, self.policy.dtype)


def sync_tolerance(given: float | None, dtype: str) -> float:
    """actors.sync_tolerance, or the one that belongs to policy.dtype where it is null."""
    return SYNC_TOLERANCES[dtype] if given is None else given
