"""One vLLM engine: samples, loads published weights, answers probes. The only importer of vllm (with extension.py).

Owned by actors/worker.py. Holds no state that matters: weights come from the learner, prompts from the driver.

`sample` hands a batch to the scheduler as a whole (paused while it is filled), so that the same requests always meet in the
same forward passes: float arithmetic depends on the shape of a batch, and a repeated run must be bit-identical.

A response ends with a token of the model's EOS set or with the one that closes an assistant's turn in the chat template,
which need not be in that set; both are finish_reason "stop".

`sample_in_flight` adds a request to whatever runs, and weights may change under it. The engine is then paused in mode
keep: nothing is recomputed. Tokens after the update are sampled by the new weights over the keys and values that the old
ones left for the positions before (the field's practice for in-flight updates), and their log-probs are recorded as
sampled, so importance weights stay exact. vLLM stamps each step's tokens with the version then in place
(Rollout.version_spans). Across requests, keys and values are shared only under one cache_salt, new at every load.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm import AsyncEngineArgs, SamplingParams
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from actors.engine_process import EngineContext, is_forked, start_server
from actors.prompts import SampleRequest
from common.chat.chat import chat_of
from common.config.config import ActorsConfig, PolicyConfig
from common.models import local_directory, tensor_names
from common.types import FloatArray, IntArray, Rollout

PROBE_TIMEOUT_S = 120


class WeightsError(RuntimeError):
    """Published weights that do not fit the engine's model; the engine must not serve."""


class VllmEngine:
    """An AsyncLLM with the few calls that the loop needs. Make it inside a running event loop."""

    def __init__(self, model: str, policy: PolicyConfig, actors: ActorsConfig, max_prompt_tokens: int, shm: Path):
        start_server(actors)
        if is_forked(actors):
            engine_utils.get_mp_context = EngineContext  # type: ignore[assignment]
        self._actors, self._shm, self._next_id, self._loads = actors, shm, 0, 0
        self._in_flight: set[str] = set()
        model = str(local_directory(model, policy.revision))
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
        self._turn_end = chat_of(self._tokenizer).turn_end()
        self._llm = AsyncLLM.from_engine_args(_engine_args(model, policy, actors, max_prompt_tokens))
        self._model = Path(model)

    async def sample(self, requests: Sequence[SampleRequest], salt: str) -> list[list[Rollout]]:
        """Samples all requests as one deterministic batch; `salt` separates the prefix caches of weight versions."""
        await self._llm.pause_generation(mode="keep", clear_cache=False)
        collectors = [await self._submit(request, salt) for request in requests]
        await self._llm.resume_generation()
        outputs = await asyncio.gather(*(_finished(collector) for collector in collectors))
        return [self._rollouts(output) for output in outputs]

    async def sample_in_flight(self, request: SampleRequest) -> list[Rollout] | None:
        """Samples one request beside whatever runs, under the weights of each moment; None if it was discarded."""
        collector = await self._submit(request, f"in-flight-{self._loads}")
        self._in_flight.add(collector.request_id)
        try:
            output = await _finished(collector)
        finally:
            self._in_flight.remove(collector.request_id)
        return None if any(part.finish_reason == "abort" for part in output.outputs) else self._rollouts(output)

    async def discard_in_flight(self) -> None:
        """Ends every sample_in_flight with None: the weights that they saw were torn."""
        await self._llm.abort(list(self._in_flight), internal=True)

    async def load_weights(self, version: int, shards: Sequence[bytes], names: Sequence[str]) -> None:
        """Loads one published version from its safetensors shards, held in memory until the reload is done. What is in flight
        waits, and goes on under the new weights; if loading fails the engine stays paused.

        Raises WeightsError for a published name that the model's files lack, and, once vLLM has loaded by its own rules, for a
        parameter that no published tensor set (vLLM would only warn, and the engine would sample with an old weight).
        """
        self._check_names(names)
        self._loads += 1
        directory = self._shm / f"load_{self._loads}_version_{version}"  # never a path twice: vLLM may cache (#32718)
        directory.mkdir(parents=True)
        _write_version(directory, shards, self._model)
        await self._llm.pause_generation(mode="keep", clear_cache=False)
        unset: list[list[str]] = await self._llm.collective_rpc("load_version", args=(str(directory),))
        if missing := sorted({name for names in unset for name in names}):
            raise WeightsError(f"published weights set none of {len(missing)} parameters in vLLM, first {missing[0]}")
        await self._llm.update_weight_version(str(version))
        await self._llm.resume_generation()
        shutil.rmtree(directory)

    async def probe(self, token_ids: IntArray) -> FloatArray:
        """log p(token t | earlier tokens) for t = 1 .. T-1 under the weights in place, at temperature 1. [T-1] float32"""
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        params.output_kind = RequestOutputKind.FINAL_ONLY
        prompt = {"prompt_token_ids": token_ids.tolist(), "cache_salt": f"probe-{self._loads}"}
        collector = await self._llm.add_request(self._request_id(), prompt, params)  # type: ignore[arg-type]
        output = await asyncio.wait_for(_finished(collector), PROBE_TIMEOUT_S)
        assert output.prompt_logprobs is not None, "vLLM returns prompt_logprobs when they are asked for"
        rows: list[dict[int, Logprob]] = [row for row in output.prompt_logprobs if row]  # the first token has none
        picked = zip(rows, token_ids[1:].tolist(), strict=True)
        return np.array([row[token].logprob for row, token in picked], dtype=np.float32)

    def shutdown(self) -> None:
        """Ends the engine and its worker processes."""
        self._llm.shutdown()

    def _request_id(self) -> str:
        self._next_id += 1
        return str(self._next_id)

    async def _submit(self, request: SampleRequest, salt: str) -> RequestOutputCollector:
        assert self._loads, "no token is sampled before a version is loaded"
        params = SamplingParams(
            n=request.num_responses,
            seed=request.seed,
            max_tokens=self._actors.max_response_tokens,
            temperature=self._actors.temperature,
            top_p=self._actors.top_p,
            stop_token_ids=[] if self._turn_end is None else [self._turn_end],
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": request.token_ids.tolist(), "cache_salt": salt}
        return await self._llm.add_request(self._request_id(), prompt, params)  # type: ignore[arg-type]

    def _rollouts(self, output: RequestOutput) -> list[Rollout]:
        return [self._rollout(completion) for completion in sorted(output.outputs, key=lambda c: c.index)]

    def _rollout(self, completion: CompletionOutput) -> Rollout:
        token_ids = np.array(completion.token_ids, dtype=np.int32)
        assert completion.logprobs is not None, "vLLM returns logprobs when they are asked for"
        assert completion.weight_versions is not None, "every step's tokens are stamped with the version in place"
        rows: list[dict[int, Logprob]] = [row for row in completion.logprobs if row]
        logprobs = [row[token].logprob for row, token in zip(rows, token_ids.tolist(), strict=True)]
        ids = token_ids.tolist()
        said = ids[:-1] if ids and ids[-1] == self._turn_end else ids  # the end of a turn may be no special token
        text = self._tokenizer.decode(said, skip_special_tokens=True)
        assert isinstance(text, str)
        return Rollout(
            response=text,
            token_ids=token_ids,
            rollout_logprobs=np.array(logprobs, dtype=np.float32),
            finish_reason="length" if completion.finish_reason == "length" else "stop",
            version_spans=tuple((span.start, int(span.version)) for span in completion.weight_versions),
        )

    def _check_names(self, names: Sequence[str]) -> None:
        if extra := sorted(set(names) - set(tensor_names(self._model))):
            raise WeightsError(f"published weights have {len(extra)} tensors that the model lacks, first {extra[0]}")


async def _finished(collector: RequestOutputCollector) -> RequestOutput:
    while True:
        output = await collector.get()
        assert isinstance(output, RequestOutput)
        if output.finished:
            return output


def _write_version(directory: Path, shards: Sequence[bytes], model: Path) -> None:
    for index, shard in enumerate(shards):
        (directory / f"model-{index:05d}-of-{len(shards):05d}.safetensors").write_bytes(shard)
    (directory / "config.json").write_text((model / "config.json").read_text())


def _engine_args(model: str, policy: PolicyConfig, actors: ActorsConfig, max_prompt_tokens: int) -> AsyncEngineArgs:
    # On CPU a prefill is never cut in two: a seeded request whose prefill is cut kills the engine (gpu_model_runner rewinds
    # the request's generator by set_offset, which CPU generators refuse; vLLM 0.32.0). Delete when vLLM guards it.
    on_cpu, max_model_len = actors.gpus == 0, max_prompt_tokens + actors.max_response_tokens
    return AsyncEngineArgs(
        model=model,
        dtype=policy.dtype,  # type: ignore[arg-type]
        trust_remote_code=policy.trust_remote_code,
        max_model_len=max_model_len,
        max_num_seqs=actors.max_num_seqs,
        tensor_parallel_size=actors.tensor_parallel,
        distributed_executor_backend=_executor(actors),
        gpu_memory_utilization=actors.gpu_memory_utilization,
        enforce_eager=actors.enforce_eager,
        logprobs_mode="processed_logprobs",
        worker_extension_cls="actors.extension.WorkerExtension",
        generation_config="auto",
        seed=0,
        disable_log_stats=True,
        enable_chunked_prefill=False if on_cpu else None,
        max_num_batched_tokens=max(8192, max_model_len) if on_cpu else None,
    )


def _executor(actors: ActorsConfig) -> str | None:
    """The import path of an executor that vLLM takes as it is, or None for vLLM's choice.

    On a CPU vLLM turns "uni" into "mp", a worker process that binds its threads to cores. We bind none and set their number
    before the core starts, so the core can run the worker itself."""
    in_core = is_forked(actors) and actors.tensor_parallel == 1
    return "vllm.v1.executor.uniproc_executor.UniProcExecutor" if in_core else None
