"""Groups of roles that do not exist, on which a fake door stands without Ray, and a loop without references."""

from __future__ import annotations

from typing import Any

from driver.cluster.calls import Group, Member, Roles


def group_of(count: int) -> Group[Any]:
    """A group of this size; calling one of its members fails."""
    return Group(Roles("fake", 1.0, reserves_cpus=False), [Member(f"fake-{index}", None) for index in range(count)])


def without_references(reward_model: str) -> None:
    """A loop calls this in place of a references pass: its aggregation centres on nothing."""
