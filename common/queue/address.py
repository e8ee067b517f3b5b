"""Where a run's queue is: what the driver gives each role so that it can open a connection of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.config.config import RedisConfig
from common.queue.queue import Queue


@dataclass(frozen=True)
class QueueAddress:
    """url and password of the server, the run's name, and the incarnation that this driver began."""

    url: str
    password: str | None = field(repr=False)
    run: str
    config: RedisConfig
    incarnation: int
    vocab_size: int | None = None  # of the policy

    def connect(self) -> Queue:
        """A queue with a connection of its own."""
        return Queue(self.url, self.password, self.run, self.config, self.incarnation, vocab_size=self.vocab_size)
