"""The trial of faults: kills, interrupts and flipped bytes, as many as are asked for.

python -m tests.trials --kills 200 --interrupts 2000 --bytes 3658

It ends with 1 and names what went wrong, if anything did; tests/trials/test_trials.py runs a short one.
"""

from __future__ import annotations

import argparse
import sys

import torch

from .flips import flips
from .interrupts import interrupts
from .kills import kills


def main() -> None:
    """Run the trials, and say what came of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.trials")
    trials = {
        "kills": kills,
        "bytes": flips,
        "interrupts": interrupts,
    }  # in this order: kills fork what has not run
    for what in trials:
        parser.add_argument(f"--{what}", type=int, default=0)
    parser.add_argument("--of", nargs="*", help="the commands that are killed; else all")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for what, trial in trials.items():
        if count := getattr(asked, what):
            done, found = trial(count, asked.of) if what == "kills" else trial(count)
            wrong += sum(found.values())
            print(f"{what}: {done}, of which {sum(found.values())} went wrong", flush=True)
            for line, times in found.most_common(20):
                print(f"  {times} x {line}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
