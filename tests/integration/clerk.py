"""A role for tests of calls, in a file of its own, which a Ray process imports in no time."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path


class Clerk:
    """A role that answers, sleeps, fails and dies as it is asked to."""

    def __init__(self, name: str):
        self._name = name

    def answer(self, text: str, times: int = 1) -> str:
        return f"{self._name}: {text * times}"

    def total(self, values: list[int]) -> int:
        return sum(values)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self) -> None:
        raise ValueError("line one\nthe reason.")

    def die(self) -> None:
        os._exit(1)

    def arenas(self, report: str) -> tuple[int, str]:
        """How many arenas glibc has after four threads have allocated, by its own report, and what a child of this process
        gets as MALLOC_ARENA_MAX."""
        threads = [
            threading.Thread(target=lambda: [ctypes.create_string_buffer(1000) for _ in range(100)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        file = ctypes.c_void_p(libc.fopen(report.encode(), b"w"))
        libc.malloc_info(0, file)
        libc.fclose(file)
        return Path(report).read_text().count("<heap nr="), os.popen("echo $MALLOC_ARENA_MAX").read().strip()
