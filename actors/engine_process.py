"""The process of an engine on a CPU: it is forked from a server that has imported vLLM by then.

vLLM spawns a process for its engine core, and on a CPU one more for the worker. Each imports vLLM anew, eight CPU seconds,
one after the other and after the actor's own import. Here the actor starts a server (multiprocessing's forkserver) before it
imports anything; the server imports vLLM beside it, and the core is forked from it when the actor asks for it. The core runs
the worker itself (actors/engine.py). A fork is safe there: the server has one thread. The server ends when the actor does.

Called by actors/worker.py and actors/engine.py; imports neither vLLM nor torch. With GPUs, or with compiled models, vLLM's
own way is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from common.config.config import ActorsConfig

# The core and the worker of a CPU. Not actors.extension: it starts a thread when it is imported.
PRELOADED = ["vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"]
# vLLM puts these before an engine's other libraries, but a server that has started is too late for that.
LIBRARIES = (("vllm", "libs/libtcmalloc*.so*"), ("torch", "lib/libgomp*.so*"))


class EngineProcess(ForkServerProcess):
    """A fork of the server, with the environment and threads of the process that asked for it."""

    def start(self) -> None:
        """Has the server fork; the environment of this moment goes along."""
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        """Runs in the fork."""
        import torch  # the server has imported it

        os.environ.update(self._environment)
        torch.set_num_threads(int(self._environment["OMP_NUM_THREADS"]))
        super().run()


class EngineContext(ForkServerContext):
    """What vLLM asks for processes."""

    Process = EngineProcess


def is_forked(actors: ActorsConfig) -> bool:
    """Whether engines of these settings are forked from the server."""
    return actors.gpus == 0 and actors.enforce_eager


def start_server(actors: ActorsConfig) -> None:
    """Starts the server, if it does not run, where engines of these settings are forked from one. It goes on importing."""
    set_environment(actors)
    if is_forked(actors):
        EngineContext().set_forkserver_preload(PRELOADED)
        with _server_environment():
            forkserver.ensure_running()


def set_environment(actors: ActorsConfig) -> None:
    """What vLLM reads from the environment when an engine's process starts."""
    if actors.gpus == 0:  # vLLM's own choice would bind every engine to all cores
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(actors.kv_cache_gib)))
    os.environ["OMP_NUM_THREADS"] = str(actors.threads)
    os.environ["ITER_RLHF_ACTOR_PID"] = str(os.getpid())  # for actors/extension.py: the engine ends when we do
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


@contextmanager
def _server_environment() -> Iterator[None]:
    """What the server alone needs. Without torch.compile the first batch does not wait seconds for a compiler, which vLLM calls
    for a count of ranks that nobody reads."""
    before = dict(os.environ)
    os.environ.update(TORCH_COMPILE_DISABLE="1", LD_PRELOAD=":".join([*_libraries(), os.environ.get("LD_PRELOAD", "")]))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _libraries() -> list[str]:
    """The first file of each of LIBRARIES that is installed."""
    found = [sorted(Path(_directory(package)).glob(pattern))[:1] for package, pattern in LIBRARIES]
    return [str(path) for paths in found for path in paths]


def _directory(package: str) -> str:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"the preflight asks for {package}"
    return spec.submodule_search_locations[0]
