"""The loop's roles in one process: the actors' engine, the rewarder and the learner as they are, without Ray and Redis.

A unit of a study must fit a core and two minutes, and starting a cluster takes a quarter of that. What the cluster and the
queue add (order, delivery, placement) does not change a synchronous run's numbers. One Lab per worker process; its vLLM
engine is started once and reloaded for each unit, each time proven by the probe (law 1).
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from transformers import AutoTokenizer

from actors.prompts import SampleRequest, response_seed
from actors.shared_memory import directory
from common.config.config import ActorsConfig, Config
from common.models import tensor_names
from common.types import FloatArray, IntArray, Prompt, Rollout
from driver.loop.publish import probe_tokens
from learner.worker import LearnerWorker

if TYPE_CHECKING:
    from actors.engine import VllmEngine

Report = Callable[[str, int, int], None]  # (what, done, total)
T = TypeVar("T")
START_TIMEOUT_S = 300
CHUNK_PROMPTS = 256


class Lab:
    """One engine on an event loop of its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="engine").start()
        self._engine: VllmEngine | None = None
        self._built_for: tuple[ActorsConfig, str] | None = None
        self._loads = 0

    def start(self, config: Config, model: Path) -> None:
        """Has an engine with this configuration's settings; one that is there already is kept."""
        wanted = (config.actors, config.policy.dtype)
        if self._built_for != wanted:
            self.close()
            self._engine = self._run(self._build(config, model))
            self._built_for = wanted
        self._tolerance = config.sync_tolerance

    def publish(self, learner: LearnerWorker, version: int, prompts: Sequence[Prompt]) -> None:
        """Loads the learner's policy as `version`; RuntimeError where the engine then answers the probe otherwise."""
        shards, names = learner.weights()
        probe = probe_tokens(prompts)
        self._load(version, shards, names, probe, learner.probe(probe, anchor=False))

    def publish_anchor(self, learner: LearnerWorker, anchor: Path, prompts: Sequence[Prompt]) -> None:
        """Loads the anchor's files as version 0, proven against the learner's frozen reference."""
        shards = [file.read_bytes() for file in sorted(anchor.glob("*.safetensors"))]
        probe = probe_tokens(prompts)
        self._load(0, shards, tensor_names(anchor), probe, learner.probe(probe, anchor=True))

    def sample(self, prompts: Sequence[Prompt], count: int, seed: int, purpose: str) -> list[list[Rollout]]:
        """`count` responses to each prompt by the weights in place; seeds depend on (seed, purpose, prompt) alone."""
        keys = [response_seed(seed, _number(purpose, prompt.prompt_id)) for prompt in prompts]
        requests = [SampleRequest(p.token_ids, count, key) for p, key in zip(prompts, keys, strict=True)]
        return self.sample_requests(requests)

    def sample_requests(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        """The requests in batches of CHUNK_PROMPTS, in order."""
        assert self._engine is not None, "start the engine first"
        answers: list[list[Rollout]] = []
        for start in range(0, len(requests), CHUNK_PROMPTS):
            part = requests[start : start + CHUNK_PROMPTS]
            answers += self._run(self._engine.sample(part, salt=f"load-{self._loads}"))
        return answers

    def close(self) -> None:
        """Ends the engine."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = self._built_for = None

    @staticmethod
    @lru_cache(maxsize=8)
    def tokenizer(directory: Path) -> Any:
        """The tokenizer of a model's directory."""
        return AutoTokenizer.from_pretrained(directory)

    async def _build(self, config: Config, model: Path) -> VllmEngine:
        from actors.engine import VllmEngine  # vllm takes ten seconds to import, and tables need none of it

        return VllmEngine(str(model), config.policy, config.actors, config.data.max_prompt_tokens, directory("study"))

    def _load(
        self, version: int, shards: Sequence[bytes], names: Sequence[str], probe: IntArray, expected: FloatArray
    ) -> None:
        assert self._engine is not None, "start the engine first"
        self._loads += 1
        self._run(self._engine.load_weights(version, shards, names))
        difference = float(np.abs(self._run(self._engine.probe(probe)) - expected).max())
        if not difference <= self._tolerance:
            raise RuntimeError(
                f"the engine holds other weights than the learner: log-probs of the probe differ by {difference:.3g}, "
                f"actors.sync_tolerance is {self._tolerance:g}; nothing may be sampled from it"
            )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT_S)


def learner_of(config: Config) -> LearnerWorker:
    """The learner of this configuration, one rank, in this process."""
    learner = LearnerWorker(0, config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    learner.connect("127.0.0.1", port)
    return learner


def _number(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:7], "big")
