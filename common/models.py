"""Models by name: a local directory or a Hub id; no torch.

Used by every role: each node downloads what it needs to its own cache, and has what the driver sent it
(driver/cluster/disks.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open

from common.config.config import Config

FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


def absolute(source: str | Path) -> str:
    """A name that means the same in every process: an absolute path for a local file or directory, a Hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def with_absolute_sources(config: Config) -> Config:
    """The configuration as roles get it, whose working directory is another: local models, data and the feature cache by
    absolute paths."""
    policy, rewarder, data, learner, judge = config.policy, config.rewarder, config.data, config.learner, config.judge
    adaptation, training, cache = config.adaptation, learner.reward_model, learner.reward_model.feature_cache
    return replace(
        config,
        policy=replace(policy, model=policy.model and absolute(policy.model)),
        rewarder=replace(rewarder, model=rewarder.model and absolute(rewarder.model)),
        data=replace(data, demonstrations=data.demonstrations and absolute(data.demonstrations)),
        judge=replace(judge, model=judge.model and absolute(judge.model)),
        learner=replace(learner, reward_model=replace(training, feature_cache=cache and str(Path(cache).resolve()))),
        adaptation=replace(adaptation, ensemble=adaptation.ensemble and absolute(adaptation.ensemble)),
    )


def local_directory(model: str, revision: str | None) -> Path:
    """The directory of a model on this node, downloaded to the cache if it is a Hub id that is not there yet."""
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, revision=revision, allow_patterns=FILES))


def tensor_names(directory: Path) -> list[str]:
    """Names of the tensors in a directory's safetensors files, sorted."""
    names: list[str] = []
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            names += tensors.keys()
    return sorted(names)
