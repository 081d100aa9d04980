"""How the benchmarks take time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Work = Callable[[], object]


def timed(work: Work) -> float:
    """Seconds that work takes, until the GPU, if there is one, has ended it."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
