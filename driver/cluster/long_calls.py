"""Long calls to roles, shown while they last. Called by the stages and by the rounds of the reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from driver.cluster.cluster import Cluster, Role
from driver.record.progress import Progress
from learner.ranks.progress import Progress as RoleProgress

POLL_S = 0.5


def follow(cluster: Cluster, roles: Sequence[Role], method: str, *arguments: object) -> Any:
    """Calls a long method on every role, showing the first one's progress until all have answered; its answer."""
    return follow_all(cluster, roles, method, *arguments)[0]


def follow_all(cluster: Cluster, roles: Sequence[Role], method: str, *arguments: object) -> list[Any]:
    """The same, and every role's answer."""
    shown, progress = "", Progress("", 1, "")
    cluster.call(roles[0], "forget_progress")
    pending = cluster.submit(roles, method, *arguments)
    while not cluster.poll(roles, pending, method, POLL_S):
        now: RoleProgress = cluster.call(roles[0], "progress")
        if not now.what:
            continue
        if now.what != shown:
            shown, progress = now.what, Progress(now.what, now.total, "steps")
        progress.reach(now.done, now.values)
    return cluster.collect(roles, pending, method)
