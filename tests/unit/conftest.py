"""Fixtures of several unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from learner.engine import init_single_rank


@pytest.fixture(scope="module")
def single_rank() -> Iterator[None]:
    """A process group of one, for code that is written for ranks."""
    torch.set_num_threads(1)
    init_single_rank()
    yield
    dist.destroy_process_group()
