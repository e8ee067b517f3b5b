"""Limits of this machine that would end a run later, with words of their own: socket paths, room for temporary files,
shared memory, open files.

Called by the preflight for runs that start roles here. Asks the operating system; waits for nothing.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from driver.preflight.findings import Findings
from driver.preflight.placement import format_gib

SOCKET_BYTES = 107  # the longest path of a Unix socket on Linux
# Ray's longest socket below its temporary directory: the name has a time and a process number
RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
VLLM_SOCKET = "/01234567-89ab-cdef-0123-456789abcdef"
LEAST_FREE_BYTES = 2**30  # for the logs of Ray and what its object store spills
LEAST_FILES = 1024
SHARED_MEMORY = Path("/dev/shm")


def check_machine(findings: Findings, local_ray: bool, shared_bytes: float | None) -> None:
    """`local_ray`: this machine starts Ray; `shared_bytes` of weights wait in shared memory here (None: not known)."""
    ray, name = temporary_directory(os.environ)
    if local_ray:
        _check_socket(name, ray, RAY_SOCKET, findings)
        _check_room(name, Path(ray), findings)
    if not local_ray or tempfile.gettempdir() != ray:  # Ray's sockets have the longer paths
        _check_socket("TMPDIR", tempfile.gettempdir(), VLLM_SOCKET, findings)
    _check_shared_memory(shared_bytes, findings)
    _check_open_files(findings)


def temporary_directory(environment: Mapping[str, str]) -> tuple[str, str]:
    """Where Ray puts its session, and the variable that says so."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if environment.get(name):
            return environment[name], name
    return "/tmp", "RAY_TMPDIR"


def _check_socket(name: str, directory: str, below: str, findings: Findings) -> None:
    given, most = len(os.fsencode(directory)), SOCKET_BYTES - len(below)
    if len(os.fsencode(directory.rstrip("/"))) > most:
        findings.problem(
            f"{name} is {directory} ({given} bytes): sockets below it would have paths of {given + len(below)} bytes, and the "
            f"system takes {SOCKET_BYTES}; set {name} to a directory of at most {most} bytes, such as /tmp"
        )


def _check_room(name: str, directory: Path, findings: Findings) -> None:
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        findings.problem(f"{name}: {there} cannot be written to; set {name} to a directory for temporary files")
        return
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        findings.problem(
            f"{name}: {there} has {format_gib(free)} free, and temporary files want "
            f"{format_gib(LEAST_FREE_BYTES)}; free some, or set {name} to a directory on another disk"
        )


def _check_shared_memory(needed: float | None, findings: Findings) -> None:
    if needed is None or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        findings.problem(
            f"{SHARED_MEMORY} has {format_gib(free)} free, and {format_gib(needed)} of weights wait there while engines "
            "load them; give it more (in Docker: --shm-size), or lower actors.num"
        )


def _check_open_files(findings: Findings) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        findings.problem(
            f"a process may open {hard} files here, and the roles want {LEAST_FILES}; raise the limit (ulimit -n {LEAST_FILES})"
        )
