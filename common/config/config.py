"""The run's configuration as types: what each section holds. Values, units and defaults stand in configs/base.yaml.

Read from files by common/config/file.py. Roles receive the sections they need in their constructors; no function takes
the whole configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunConfig:
    name: str
    dir: str
    seed: int


@dataclass(frozen=True)
class ClusterConfig:
    address: str | None
    dashboard: bool
    start_timeout_s: float
    call_timeout_s: float


@dataclass(frozen=True)
class RedisConfig:
    url: str | None
    password_env: str
    capacity: int
    max_record_mib: float
    max_attempts: int
    reclaim_idle_s: float


@dataclass(frozen=True)
class DataConfig:
    prompts: str | None
    eval_prompts: str | None
    demonstrations: str | None
    ratings: str | None
    preferences: str | None
    strengths: str | None
    max_prompt_tokens: int
    long_prompts: str


@dataclass(frozen=True)
class PolicyConfig:
    model: str | None
    revision: str | None
    dtype: str
    trust_remote_code: bool


@dataclass(frozen=True)
class ActorsConfig:
    num: int
    gpus: float
    threads: int
    responses_per_prompt: int
    max_response_tokens: int
    temperature: float
    top_p: float
    max_num_seqs: int
    tensor_parallel: int
    gpu_memory_utilization: float
    kv_cache_gib: float
    enforce_eager: bool
    sync_tolerance: float


@dataclass(frozen=True)
class RewarderConfig:
    num: int
    gpus: float
    threads: int
    model: str | None
    revision: str | None
    objectives: list[str]
    programs: dict[str, str]
    preference: str | None
    dtype: str
    max_tokens: int
    batch_tokens: int
    truncation_penalty: float


@dataclass(frozen=True)
class AggregationConfig:
    kind: str
    groups: dict[str, list[str]]
    objectives: list[str]
    uncertainty_penalty: float
    thresholds: dict[str, float]
    weights: dict[str, float]
    weight_floor: float
    probability_floor: float
    references_per_prompt: int
    quantile: float
    estimator: str
    canned: dict[str, str]


@dataclass(frozen=True)
class SftConfig:
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_fraction: float


@dataclass(frozen=True)
class DenoisingConfig:
    keep: list[float]
    flip: float
    smoothing: float
    smooth: str
    targets: str
    margin: float
    margin_cap: float

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
    kind: str
    weight: float
    temperature: float
    dropout: float
    prototypes: int


@dataclass(frozen=True)
class RewardTrainingConfig:
    stage_1: str
    feature_cache: str | None
    epochs: int
    batch_size: int
    learning_rate: float
    lora_rank: int | None
    regression_weight: float
    gate_steps: int
    gate_learning_rate: float
    gate_hidden: int
    gate_layers: int
    gate_temperature: float
    initial_scale: float
    held_out_fraction: float
    verbosity: str | None
    baseline: bool
    denoising: DenoisingConfig
    contrastive: ContrastiveConfig


@dataclass(frozen=True)
class PreferencesConfig:
    members: int
    folds: int
    train: str
    vary_seed: bool
    bootstrap: bool
    epochs: int
    batch_size: int
    learning_rate: float
    lora_rank: int
    workers: int
    gpus: float
    threads: int
    keep_models: bool


@dataclass(frozen=True)
class LearnerConfig:
    ranks: int
    gpus: float
    threads: int
    zero_stage: int
    autocast: bool
    gradient_checkpointing: bool
    micro_batch_tokens: int
    groups_per_step: int
    num_updates: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    betas: list[float]
    grad_clip: float
    clip_low: float
    clip_high: float
    importance_cap: float | None
    kl_coef: float
    kl_estimator: str
    sft: SftConfig
    preferences: PreferencesConfig
    reward_model: RewardTrainingConfig


@dataclass(frozen=True)
class IterationConfig:
    num: int
    steps: int
    max_staleness: int
    policy_start: str


@dataclass(frozen=True)
class DriftConfig:
    signal: str
    change: float
    pairs: int


@dataclass(frozen=True)
class MetaConfig:
    prompts: int
    step: str
    size: float
    second_order: str
    weight: float


@dataclass(frozen=True)
class OcrmConfig:
    strength: float
    mixture: float


@dataclass(frozen=True)
class AdaptationConfig:
    when: str
    every_steps: int
    drift: DriftConfig
    method: str
    tier: str
    fit_pairs: int
    fit_rounds: int
    evidence_pairs: int
    min_pairs: int
    select: str
    ensemble: str | None
    level: float
    guard_accuracy: float
    guard_r2: float
    steps: int
    batch_pairs: int
    learning_rate: float
    replay_weight: float
    lora_rank: int
    top_layers: int
    meta: MetaConfig
    ocrm: OcrmConfig
    confidence: float
    ranks: int
    zero_stage: int
    gpus: float
    threads: int

    @property
    def enabled(self) -> bool:
        return self.when != "never"


@dataclass(frozen=True)
class EndpointConfig:
    url: str | None
    model: str | None
    key_env: str | None
    instruction: str
    answer_tokens: int
    timeout_s: float
    max_response_kib: int
    retries: int
    concurrency: int


@dataclass(frozen=True)
class JudgeConfig:
    function: str | None
    labeler: str | None
    ideal: str | None
    collect_prompts: int
    collect_responses: int
    model: str | None
    revision: str | None
    num: int
    gpus: float
    threads: int
    endpoint: EndpointConfig
    file: str | None

    @property
    def compares(self) -> str | None:
        """Who compares pairs in the rounds: model, endpoint, file, labeler or function; None where nobody does."""
        kinds = {"model": self.model, "endpoint": self.endpoint.url, "file": self.file}
        kinds |= {"labeler": self.labeler, "function": self.function}
        return next((kind for kind, given in kinds.items() if given), None)


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int
    keep: int


@dataclass(frozen=True)
class EvaluateConfig:
    prompts: int
    bootstrap_samples: int


@dataclass(frozen=True)
class EvaluateRmConfig:
    pairs: dict[str, str]
    slice: str | None
    rewardbench: str | None
    prior_sets: dict[str, str]
    rewardbench2: str | None
    baseline: str | None
    baseline_revision: str | None
    batch_tokens: int


@dataclass(frozen=True)
class ExplainConfig:
    prompt: str | None
    responses: list[str]
    file: str | None
    rows: int


@dataclass(frozen=True)
class ExportConfig:
    push_to_hub: str | None
    private: bool
    token_env: str
    allow_existing: bool


@dataclass(frozen=True)
class ReportConfig:
    samples_per_step: int
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


# Ways to adapt the reward model (docs/adaptation.md), and how much of it is trained
METHODS = ("labelled", "none", "literal", "no_restore", "joint", "look_ahead", "ocrm", "pseudo_label")
META_METHODS = ("literal", "no_restore", "joint", "look_ahead")  # with MetaRM's difference loss on unlabelled samples
TIERS = ("gate", "heads", "lora", "top", "full")
CACHED_TIERS = ("gate", "heads")  # trained on cached hidden states
STAGES = ("sft", "collect", "preferences", "reward_model", "iterate", "evaluate", "export", "report")
COMMANDS = ("evaluate_rm", "explain")  # accepted by --stages alone; never skipped, never part of a run's `stages`
