"""How the benchmarks take time."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

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


def machine() -> str:
    """What was measured on: processor, vector units, threads, torch and GPU; figures name it."""
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    parts = [
        names[0] if names else platform.processor() or platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
    ]
    return ", ".join([*parts, *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])])
