"""Long calls to roles, shown while they last. Used by the doors (driver/cluster/doors.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from driver.cluster.calls import Group
from driver.record.progress import Progress
from learner.ranks.progress import Watched

POLL_S = 0.5

W = TypeVar("W", bound=Watched)
P = ParamSpec("P")
R = TypeVar("R")


def follow(group: Group[W], method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
    """Calls a long method on every member and shows the first one's progress until all have answered."""
    shown, progress = "", Progress("", 1, "")
    group.first(Watched.forget_progress)
    pending = group.begin(method, *args, **kwargs)
    while not group.have_answered(pending, POLL_S):
        now = group.first(Watched.progress)
        if not now.what:
            continue
        if now.what != shown:
            shown, progress = now.what, Progress(now.what, now.total, "steps")
        progress.reach(now.done, now.values)
    return group.answers(pending)
