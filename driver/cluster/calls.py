"""Calls to roles by the methods of their classes. Only this file knows a method's name as a string, and `.remote`.

    learners = Group[LearnerWorker](roles)
    learners.all(LearnerWorker.train, step) -> list[StepResult]       the type checker sees the arguments and the answer

Used by the doors (driver/cluster/doors.py) and by driver/cluster/cluster.py, which makes the roles. Every call has a deadline
and a name, so that an error or a silence tells whose it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, TypeVarTuple, cast

import ray
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import RunError

DEAD_WITHIN_S = 10.0  # a lost node is noticed by its closed connections
# glibc reads MALLOC_ARENA_MAX when a process starts, so it must be there before. Ray runs a role's methods on several threads;
# each would have an arena of its own, which keeps what a step freed (a learner of 135 M parameters: 11.4 GB in place of 5.0).
FOR_EVERY_ROLE = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}

W = TypeVar("W")  # the class of a role
T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class RoleError(RunError):
    """A role died, hung or failed; the text says which one and what it was doing."""


@dataclass(frozen=True)
class Place:
    """What a role gets: GPUs, threads, the calls that it answers at once, and a node's id where it must run on that one."""

    gpus: float
    threads: int
    concurrency: int = 4
    node: str | None = None


@dataclass(frozen=True)
class Member(Generic[W]):
    """One role: its name, and Ray's handle of it."""

    name: str
    handle: Any


@dataclass(frozen=True)
class Pending(Generic[R]):
    """A call that has begun: the method, and Ray's references to the answers with the names of the roles that owe them."""

    method: str
    names: tuple[str, ...]
    answers: tuple[ray.ObjectRef, ...]


@dataclass(frozen=True)
class Stored(Generic[T]):
    """A value that is stored once for calls to many roles. Pass on `argument`: inside a call it arrives as the value."""

    argument: T


def store(value: T) -> Stored[T]:
    """Puts a value into Ray's object store."""
    return Stored(cast(T, ray.put(value)))


def awaited(method: Callable[Concatenate[W, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[W, P], R]:
    """An async method as its caller sees it: Ray awaits it inside the role."""
    return cast("Callable[Concatenate[W, P], R]", method)


class Roles:
    """All roles of one run: makes them, waits for their answers, and ends them."""

    def __init__(self, run: str, limit_s: float, reserves_cpus: bool):
        self._run, self.limit_s, self._reserves_cpus = run, limit_s, reserves_cpus
        self._members: list[Member[Any]] = []

    def make(self, role: Callable[P, W], name: str, place: Place, *args: P.args, **kwargs: P.kwargs) -> Member[W]:
        """Starts a role of this class as the Ray actor `<run>/<name>`."""
        options = self._options(name, place)
        try:
            handle = ray.remote(cast("Any", role)).options(**options).remote(*args, **kwargs)
        except ActorAlreadyExistsError as error:
            raise RoleError(
                f"this cluster already has a role {options['name']}: a run named {self._run!r} is working here. "
                "Stop it or choose another run.name; the roles of a run that was just killed end within a minute."
            ) from error
        member = Member[W](name, handle)
        self._members.append(member)
        return member

    def answers(self, pending: Pending[R], limit_s: float) -> list[R]:
        """All answers in order. The first failure to come is raised, so that a rank that waits for a dead one is not blamed."""
        name_of = dict(zip(pending.answers, pending.names, strict=True))
        left, deadline, values = list(pending.answers), time.monotonic() + limit_s, dict[ray.ObjectRef, R]()
        while left:
            done, left = ray.wait(left, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                raise self._late([name_of[answer] for answer in left], pending.method, limit_s)
            values |= {answer: self._value(answer, name_of[answer], pending.method, limit_s) for answer in done}
        return [values[answer] for answer in pending.answers]

    def have_answered(self, pending: Pending[Any], within_s: float) -> bool:
        """Whether all answers have come within this time. RoleError as soon as one is a failure, whoever else is waiting."""
        done, left = ray.wait(list(pending.answers), num_returns=len(pending.answers), timeout=within_s)
        for answer in done:
            name = pending.names[pending.answers.index(answer)]
            self._value(answer, name, pending.method, self.limit_s)
        return not left

    def settle(self, pending: Pending[Any], within_s: float) -> None:
        """Waits until a call has ended in every role, however it ends."""
        ray.wait(list(pending.answers), num_returns=max(len(pending.answers), 1), timeout=within_s)

    def end(self, members: Iterable[Member[Any]] | None = None) -> None:
        """Kills these roles, or all."""
        for member in list(self._members if members is None else members):
            ray.kill(member.handle)
            self._members.remove(member)

    def _value(self, answer: ray.ObjectRef, name: str, method: str, limit_s: float) -> Any:
        try:
            return ray.get(answer, timeout=limit_s)
        except GetTimeoutError as error:
            raise self._late([name], method, limit_s) from error
        except RayTaskError as error:
            raise RoleError(f"{name} failed in {method}: {reason(error)}{self._dead()}") from error
        except RayActorError as error:
            raise RoleError(
                f"{name} died during {method}; its log is in {log_dir()}: {reason(error)}{self._dead()}"
            ) from error
        except RayError as error:
            raise RoleError(f"{name}: Ray could not run {method}: {error}") from error

    def _late(self, names: Sequence[str], method: str, limit_s: float) -> RoleError:
        return RoleError(f"{', '.join(names)} did not answer {method} within {limit_s:g} s; logs are in {log_dir()}")

    def _dead(self) -> str:
        """For an error: the roles that are no more. A rank whose peer died fails with words of its own."""
        pending = {member.handle.__ray_ready__.remote(): member.name for member in self._members}
        answered, _ = ray.wait(list(pending), num_returns=len(pending), timeout=DEAD_WITHIN_S)
        dead = [pending[answer] for answer in answered if _is_dead(answer)]
        return f". Dead: {', '.join(dead)}" if dead else ""

    def _options(self, name: str, place: Place) -> dict[str, Any]:
        environment = {**FOR_EVERY_ROLE, "OMP_NUM_THREADS": str(max(place.threads, 1))}
        return {
            "name": f"{self._run}/{name}",
            "num_gpus": place.gpus,
            "num_cpus": place.threads if self._reserves_cpus else 0,
            "max_concurrency": place.concurrency,
            "runtime_env": {"env_vars": environment},
            "scheduling_strategy": place.node and NodeAffinitySchedulingStrategy(place.node, False),
        }


class Group(Generic[W]):
    """Roles of one class, which are called together. Each call takes a method of that class."""

    def __init__(self, roles: Roles, members: Iterable[Member[W]] = (), limit_s: float | None = None):
        self._roles, self._members = roles, list(members)
        self._limit_s = roles.limit_s if limit_s is None else limit_s

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Member[W]) -> None:
        """Adds a member at the end."""
        self._members.append(member)

    def only(self, indices: Iterable[int]) -> Group[W]:
        """Some of the members."""
        return Group(self._roles, [self._members[index] for index in indices], self._limit_s)

    def within(self, limit_s: float) -> Group[W]:
        """Returns the group with another deadline for its answers."""
        return Group(self._roles, self._members, limit_s)

    def all(self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Calls all members at once with the same arguments and waits for every answer."""
        return self.answers(self.begin(method, *args, **kwargs))

    def first(self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the first member alone."""
        return self.only([0]).all(method, *args, **kwargs)[0]

    def deal(self, method: Callable[[W, *Ts], R], arguments: Sequence[tuple[*Ts]]) -> list[R]:
        """Makes one call for each tuple of arguments, dealt to the members in turn; the answers are in the tuples' order."""
        dealt = [self._members[at % len(self._members)] for at in range(len(arguments))]
        begun = [_begin(member, method, *values) for member, values in zip(dealt, arguments, strict=True)]
        names = tuple(member.name for member in dealt)
        return self.answers(Pending(_name(method), names, tuple(begun)))

    def begin(self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> Pending[R]:
        """Begins a call on all members; `have_answered` says when it is done, and `answers` what it gave."""
        begun = tuple(_begin(member, method, *args, **kwargs) for member in self._members)
        return Pending(_name(method), tuple(member.name for member in self._members), begun)

    def answers(self, pending: Pending[R]) -> list[R]:
        """The answers to a call that has begun, in the members' order."""
        return self._roles.answers(pending, self._limit_s)

    def have_answered(self, pending: Pending[R], within_s: float) -> bool:
        """Whether every member answers a call that has begun within the time given."""
        return self._roles.have_answered(pending, within_s)

    def settle(self, pending: Pending[R], within_s: float) -> None:
        """Waits until a call has ended in every role, however it ends."""
        self._roles.settle(pending, within_s)

    def end(self) -> None:
        """Gives back what the members hold."""
        self._roles.end(self._members)
        self._members.clear()


def _begin(member: Member[Any], method: Callable[..., Any], *args: object, **kwargs: object) -> ray.ObjectRef:
    return getattr(member.handle, _name(method)).remote(*args, **kwargs)


def _name(method: Callable[..., Any]) -> str:
    return method.__name__


def _is_dead(answer: ray.ObjectRef) -> bool:
    try:
        ray.get(answer)
    except RayError:
        return True
    return False


def log_dir() -> str:
    """Where Ray keeps the roles' logs on each node."""
    return f"{ray.get_runtime_context().get_session_name()} under Ray's temporary directory, logs/"


def reason(error: BaseException) -> str:
    """What a role's error says: its kind and its whole message, without the stack trace that Ray puts before them. A message of
    several lines keeps them all, as one."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        said = " ".join(str(error.cause).split())
        return f"{type(error.cause).__name__}: {said}".rstrip(".: ")
    lines = [line for line in str(error).splitlines() if line.strip() and not line[0].isspace()]
    return " ".join(lines).rstrip(".")
