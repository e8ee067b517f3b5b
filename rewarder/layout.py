"""The files of a gated reward model: the released ArmoRM layout, read strictly and written exactly.

Owns names, shapes, config keys and refusals; `model.GatedRewardModel` is the only caller. A checkpoint's own code is
never run. Every tensor must be there: a stock classifier or a language model of the same model_type is refused, because
generic loaders would give it random heads and random scores.

Layout of RLHFlow/ArmoRM-Llama3-8B-v0.1, plus our keys in config.json: objectives, rm_version, verbosity, calibration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from common.json_text import json_text
from rewarder.calibrate import Calibration

ARCHITECTURE = "LlamaForRewardModelWithGating"
BACKBONE = "model."
OUR_KEYS = ("num_objectives", "gating_temperature", "gating_hidden_dim", "gating_n_hidden")
OUR_EXTRA_KEYS = ("objectives", "rm_version", "verbosity", "calibration")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
# The released config.json names no objectives; these are its 19 rows in order.
_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_ULTRAFEEDBACK = ("overall_score", "instruction_following", "truthfulness", "honesty", "helpfulness")
_CODE = ("complexity", "style", "explanation", "instruction-following", "readability")
ARMORM_OBJECTIVES = (
    *(f"helpsteer-{name}" for name in _HELPSTEER),
    *(f"ultrafeedback-{name}" for name in _ULTRAFEEDBACK),
    *("beavertails-is_safe", "prometheus-score", "argilla-overall_quality", "argilla-judge_lm"),
    *(f"code-{name}" for name in _CODE),
)


class CheckpointError(ValueError):
    """A directory that is not a gated reward model, or not the one asked for."""


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of what stands on the backbone: gate_layers hidden layers of gate_hidden units, softmax at
    gate_temperature."""

    hidden: int
    num_objectives: int
    gate_hidden: int
    gate_layers: int
    gate_temperature: float

    def gate_widths(self) -> tuple[int, ...]:
        """The widths of the gate's layers, from its input to its output."""
        return (self.hidden, *(self.gate_hidden,) * self.gate_layers, self.num_objectives)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor but the backbone's."""
        shapes = {"regression_layer.weight": (self.num_objectives, self.hidden), "gating.logit_scale": (1,)}
        shapes["reward_transform_matrix"] = (self.num_objectives, self.num_objectives)
        widths = self.gate_widths()
        for i, (before, after) in enumerate(pairwise(widths)):
            shapes |= {f"gating.layers.{i}.weight": (after, before), f"gating.layers.{i}.bias": (after,)}
        return shapes


@dataclass(frozen=True)
class RewardModelInfo:
    """What a checkpoint says of itself: objective names in head order, version, the verbosity objective,
    calibration."""

    objectives: tuple[str, ...]
    rm_version: int = 0
    verbosity: str | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives are {self.objectives}; want at least one name, each once")
        if self.verbosity is not None and self.verbosity not in self.objectives:
            raise ValueError(f"verbosity is {self.verbosity!r}, not one of the objectives {self.objectives}")


@dataclass(frozen=True)
class Layout:
    """A checked checkpoint, weights not yet read; files maps each tensor to its file."""

    backbone: PreTrainedConfig
    sizes: HeadSizes
    info: RewardModelInfo
    files: dict[str, Path]


def read_layout(source: str | Path, objectives: Sequence[str], revision: str | None) -> Layout:
    """Config and tensor names of a local directory, or of a hub repository at a revision (downloaded, without code).

    `objectives` must be the checkpoint's, or empty to take them from it. Raises CheckpointError."""
    directory = Path(source) if Path(source).is_dir() else Path(_download(str(source), revision))
    config = _read_json(directory / "config.json")
    files = _tensor_files(directory)
    backbone = backbone_config(directory, config)
    _check_heads_present(directory, config, files)
    sizes = _head_sizes(directory, config, files, backbone.hidden_size)
    return Layout(backbone, sizes, _info(config, objectives, sizes.num_objectives), files)


def read_tensors(layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(backbone state without the `model.` prefix, heads state); CheckpointError where a value is not finite."""
    backbone: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for file in sorted(set(layout.files.values())):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a safe_open is no mapping
                value = tensors.get_tensor(name)
                if not bool(torch.isfinite(value).all()):
                    raise CheckpointError(
                        f"{file}: {name} has NaN or infinite values; train or download the model again"
                    )
                (backbone if name.startswith(BACKBONE) else heads)[name.removeprefix(BACKBONE)] = value
    return backbone, heads


def stored_name(parameter: str) -> str:
    """Name in the files of a parameter of GatedRewardModel: backbone.* becomes model.*, the heads keep theirs."""
    return BACKBONE + parameter.removeprefix("backbone.") if parameter.startswith("backbone.") else parameter


def write(directory: Path, state: dict[str, Tensor], config: Mapping[str, Any], max_shard_size: str) -> None:
    """Safetensors (with an index file when there is more than one shard) and, last, config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    # A copy, on the CPU too: ZeRO 1 and 2 leave parameters as views of one buffer, which safetensors refuses to write.
    whole = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    save_torch_state_dict(whole, directory, max_shard_size=max_shard_size)
    (directory / "config.json").write_text(json_text(config, indent=2, sort_keys=True) + "\n")


def config_values(backbone: PreTrainedConfig, sizes: HeadSizes, info: RewardModelInfo) -> dict[str, Any]:
    """The contents of config.json."""
    heads = (sizes.num_objectives, sizes.gate_temperature, sizes.gate_hidden, sizes.gate_layers)
    calibration = info.calibration.to_dict() if info.calibration else None
    extra = (list(info.objectives), info.rm_version, info.verbosity, calibration)
    values = {key: value for key, value in backbone.to_dict().items() if key not in ("_name_or_path", "auto_map")}
    values["architectures"] = [ARCHITECTURE]
    return values | dict(zip(OUR_KEYS, heads, strict=True)) | dict(zip(OUR_EXTRA_KEYS, extra, strict=True))


def backbone_config(directory: str | Path, config: Mapping[str, Any]) -> PreTrainedConfig:
    """The decoder's configuration, by a class that transformers ships; remote code named in it is ignored."""
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{directory}: model_type {kind!r} is not in transformers, and a checkpoint's own code is never run"
        )
    skip = (*OUR_KEYS, *OUR_EXTRA_KEYS, "auto_map", "architectures")
    return CONFIG_MAPPING[kind].from_dict({key: value for key, value in config.items() if key not in skip})


def _download(repo: str, revision: str | None) -> str:
    if repo.startswith((".", "/", "~")) or repo.count("/") > 1:
        raise CheckpointError(f"{repo}: no such directory; give a reward model's directory or a hub name (owner/name)")
    return snapshot_download(repo, revision=revision, allow_patterns=FILES)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; a reward model's directory has config.json, safetensors and a tokenizer"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no whole JSON file ({error}); download or export the model again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; want an object")
    return values


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or from the one file."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = _read_json(index)["weight_map"]
    else:
        with safe_open(_existing(directory, "model.safetensors"), "pt") as tensors:
            names = dict.fromkeys(tensors.keys(), "model.safetensors")
    return {name: _existing(directory, file) for name, file in names.items()}


def _existing(directory: Path, file: str) -> Path:
    if Path(file).name != file or not (directory / file).is_file():
        raise CheckpointError(f"{directory}: weights file {file} is missing; want safetensors beside config.json")
    return directory / file


def _kind(config: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    if "score.weight" in files:
        return "a stock sequence classifier"
    language_model = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    return "a language model" if language_model or "lm_head.weight" in files else "not a gated reward model"


def _check_heads_present(directory: Path, config: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    wanted = ("regression_layer.weight", "reward_transform_matrix", "gating.logit_scale", "gating.layers.0.weight")
    missing = [name for name in wanted if name not in files]
    if missing:
        raise CheckpointError(
            f"{directory} is {_kind(config, files)}: it lacks {missing}; "
            "give a gated reward model (stage reward_model trains one), or rewarder.model: null"
        )


def _shape(file: Path, name: str) -> tuple[int, ...]:
    with safe_open(file, "pt") as tensors:
        return tuple(tensors.get_slice(name).get_shape())


def _head_sizes(directory: Path, config: Mapping[str, Any], files: Mapping[str, Path], hidden: int) -> HeadSizes:
    """Sizes by config.json, released defaults where it is silent, held against every tensor of the heads."""
    shapes = {name: _shape(file, name) for name, file in files.items() if not name.startswith(BACKBONE)}
    num_objectives = int(config.get("num_objectives") or shapes["regression_layer.weight"][0])
    layers, temperature = int(config.get("gating_n_hidden", 3)), float(config.get("gating_temperature", 10.0))
    sizes = HeadSizes(hidden, num_objectives, int(config.get("gating_hidden_dim", 1024)), layers, temperature)
    want = sizes.shapes()
    wrong = [f"{n} {shapes.get(n)} (want {want.get(n)})" for n in sorted(want | shapes) if shapes.get(n) != want.get(n)]
    if wrong:
        raise CheckpointError(f"{directory}: heads do not fit config.json ({sizes}): {'; '.join(wrong)}")
    return sizes


def _info(config: Mapping[str, Any], asked: Sequence[str], count: int) -> RewardModelInfo:
    default = ARMORM_OBJECTIVES if count == len(ARMORM_OBJECTIVES) else tuple(f"objective_{k}" for k in range(count))
    stored = config.get("objectives")
    if asked and len(asked) != count:
        raise CheckpointError(
            f"rewarder.objectives has {len(asked)} names but the checkpoint has {count} objectives; "
            f"list all {count} in order, or omit the key."
        )
    if asked and stored and list(asked) != list(stored):
        raise CheckpointError(f"rewarder.objectives is {list(asked)} but the checkpoint has {stored}; omit the key.")
    calibration = config.get("calibration")
    return RewardModelInfo(
        tuple(stored or asked or default),
        int(config.get("rm_version", 0)),
        config.get("verbosity"),
        Calibration.from_dict(calibration) if calibration else None,
    )
