"""How long closed-form heads take, and how much memory.

    python -m benchmarks.ridge [--rows N] [--features N] [--objectives N] [--out DIR]

Random hidden states as learner/reward_model/feature_cache.py keeps them (float32, memory-mapped, on disk while this runs),
four fifths to fit and the rest to pick alpha. Three ways for ratings to be missing: none is; each row is rated by one of 7
sources, as in the data of the released reward model; at random, where no two objectives share a Gram matrix (the most work
and memory). Each is fitted in a process of its own, whose whole peak counts: interpreter, torch and mapped pages too.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from benchmarks.measure import Row, publish
from learner.reward_model.ridge import Block, fit_ridge

BLOCK_ROWS = 8192
SOURCES = 7
LIMIT_GIB = 2.0


def main() -> None:
    """Measures and prints every row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--objectives", type=int, default=19)
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks"))
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=_made(asked.out)) as scratch:
        path = Path(scratch) / "features.npy"
        write_features(path, asked.rows, asked.features)
        for name in MISSING:
            seconds, peak_gib = in_own_process(partial(fit, path, asked.objectives, name))
            rows.append(Row(f"time, {name}", seconds, "s"))
            rows.append(Row(f"peak memory, {name}", peak_gib, "GiB", limit=("<", LIMIT_GIB)))
    publish("ridge", {name: value for name, value in vars(asked).items() if name != "out"}, rows, asked.out)


def in_own_process(work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Runs the work in a new process, so that memory of an earlier one is not counted."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work).result()


def fit(path: Path, objectives: int, missing: str) -> tuple[float, float]:
    """(seconds, peak GiB of this process)."""
    torch.set_num_threads(1)
    features = torch.from_numpy(np.load(path, mmap_mode="c"))
    ratings = make_ratings(len(features), objectives)
    ratings[~MISSING[missing](len(features), objectives)] = torch.nan
    cut = len(features) * 4 // 5
    names = [f"objective_{k}" for k in range(objectives)]
    started = time.perf_counter()
    fit_ridge(blocks(features[:cut], ratings[:cut]), blocks(features[cut:], ratings[cut:]), names)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def blocks(features: torch.Tensor, ratings: torch.Tensor) -> Iterator[Block]:
    """Features and ratings, block by block."""
    yield from zip(features.split(BLOCK_ROWS), ratings.split(BLOCK_ROWS), strict=True)


def write_features(path: Path, rows: int, features: int) -> None:
    """Writes random float32 features [rows, features] as an .npy file."""
    generator = np.random.default_rng(0)
    states = open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, features))
    for start in range(0, rows, BLOCK_ROWS):
        part = states[start : start + BLOCK_ROWS]
        part[:] = generator.standard_normal(part.shape, dtype=np.float32)
    states.flush()


def make_ratings(rows: int, objectives: int) -> torch.Tensor:
    """Random ratings [rows, objectives] from 0 to 1."""
    return torch.rand(rows, objectives, generator=torch.Generator().manual_seed(1))


def all_rated(rows: int, objectives: int) -> torch.Tensor:
    """The mask [rows, objectives] of ratings that are all known."""
    return torch.ones(rows, objectives, dtype=torch.bool)


def by_source(rows: int, objectives: int) -> torch.Tensor:
    """Row n is rated by source n mod SOURCES, on the objectives k with k mod SOURCES the same."""
    return torch.arange(rows)[:, None] % SOURCES == torch.arange(objectives) % SOURCES


def at_random(rows: int, objectives: int) -> torch.Tensor:
    """Half of all ratings."""
    return torch.rand(rows, objectives, generator=torch.Generator().manual_seed(2)) < 0.5


MISSING = {"all rated": all_rated, "rated by source": by_source, "half missing at random": at_random}


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


if __name__ == "__main__":
    main()
