"""Kills commands at random moments, gives them again, and compares what they end with.

Processes are forked from this one, which has imported everything, so that moments fall into the work itself. This
one computes nothing: threads of its own (PyArrow's, say) would lack in what is forked later, which would wait for
them.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch

# Imported here, and so by no forked process: what the commands import when they run.
from pellucid.cli import demo_page, facts, program, run
from pellucid.cli.doctor import examined
from pellucid.experiments.store import Results

IMPORTED = (demo_page, facts, run)
NET = ("--model", "shapes-resnet")
AT_ONCE = 4  # kills before a command is let finish
LONGEST = 600.0  # seconds after which a command hangs
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Command:
    """What is typed, what it writes, and what of that must be equal."""

    arguments: tuple[str, ...]
    output: str
    result: Callable[[Path], Any]
    share: int  # of the kills


def contents(folder: Path) -> dict[str, str]:
    """Every file but those that tell of times."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".svg", ".safetensors")]
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in paths}


def table(folder: Path) -> str:
    results = Results.read(folder)
    return results.table.to_csv() + str(results.missing) + str(len(results.pictures))


def tables(folder: Path) -> dict[str, str]:
    return {path.name: table(path.parent) for path in sorted(folder.glob("*/run.json"))}


def papers_tables(folder: Path) -> dict[str, str]:
    return {path.parent.name: table(path.parent) for path in sorted(folder.glob("*/*/run.json"))}


def tensors(path: Path) -> dict[str, Any]:
    return {name: value.tolist() for name, value in safetensors.torch.load_file(path).items()}


SPEC = ("--images=shapes:8", "--methods=gradient,smoothgrad", "--layers=input,layer2.0", "--images-per-cell=1")
COMMANDS = {
    "explain": Command(
        ("explain", "shapes:6", *NET, "--methods=gradient,smoothgrad", "--layers=all", "-o", "out"),
        "out",
        contents,
        5,
    ),
    "benchmark": Command(("benchmark", *NET, *SPEC, "--metrics=deletion(steps=4)", "-o", "out"), "out", table, 5),
    "train": Command(
        ("train", "shapes", "--epochs=3", "--count=160", "-o", "out.safetensors"), "out.safetensors", tensors, 4
    ),
    "surrogate": Command(
        (
            "surrogate",
            "train",
            *NET,
            "--images=shapes:24",
            "--epochs=4",
            "--batch-size=8",
            "-o",
            "out.safetensors",
        ),
        "out.safetensors",
        tensors,
        4,
    ),
    "demo": Command(("demo", "-o", "out"), "out", tables, 1),
}
if "PELLUCID_DATA" in os.environ:
    COMMANDS["reproduce"] = Command(
        (
            *("reproduce", "sanity-checks", "--scale=smoke", "-o", "out"),
            *(f"--{what}={os.environ['PELLUCID_DATA']}/{what}" for what in ("data", "weights")),
        ),
        "out",
        papers_tables,
        1,
    )


def start(arguments: tuple[str, ...], folder: Path) -> int:
    """Run a command in a process of its own, in a folder; its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(folder)
        log = os.open(folder / ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["pellucid", *arguments]
        program.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int, after: float = LONGEST) -> int:
    """The exit code of a process, minus the signal if it was killed, which it is after so many seconds."""
    due = time.monotonic() + after
    while (found := os.waitpid(process, os.WNOHANG)) == (0, 0):
        time.sleep(min(0.01, max(due - time.monotonic(), 0)))
        if time.monotonic() >= due:
            os.kill(process, signal.SIGKILL)  # until it is waited for, its number is no other's
            found = os.waitpid(process, 0)
            break
    return os.waitstatus_to_exitcode(found[1])


def apart(function: Callable[..., Any], *given: Any) -> Any:
    """What a function gives in a process of its own."""
    receiving, sending = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sending.send(function(*given)))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    finally:
        process.join()


def kills(count: int, of: list[str] | None = None) -> tuple[int, Counter[str]]:
    """Kill each command at random moments; how many kills met it running, and what was wrong in the end."""
    moments, done, wrong = random.Random(0), 0, Counter()
    chosen = {name: command for name, command in COMMANDS.items() if not of or name in of}
    shares = sum(command.share for command in chosen.values())
    for name, command in chosen.items():
        with tempfile.TemporaryDirectory() as place:
            here, found = _trial(command, Path(place), -(-count * command.share // shares), moments)
        done += here
        wrong.update(f"{name}: {what}" for what in found)
        print(f"  {name}: {here} kills, {len(found)} went wrong", flush=True)
    return done, wrong


def _trial(command: Command, place: Path, count: int, moments: random.Random) -> tuple[int, list[str]]:
    """Kill one command so often; how many kills met it running, and what was wrong."""
    undisturbed = place / "undisturbed"
    undisturbed.mkdir()
    begun = time.perf_counter()
    if ended(start(command.arguments, undisturbed)):
        return 0, [f"fails undisturbed: {_said(undisturbed)}"]
    seconds = time.perf_counter() - begun
    expected, done, wrong = apart(command.result, undisturbed / command.output), 0, []
    while done < count:
        folder = place / "killed"
        folder.mkdir()
        if moments.random() < 0.5 and not command.output.endswith(".safetensors"):  # an earlier run stands there
            shutil.copytree(undisturbed / command.output, folder / command.output)
            if command.arguments[0] in ("explain", "demo"):
                (folder / command.output / "mine.txt").write_text("mine")
                (folder / command.output / "report.html").unlink()  # a whole one would be left as it is
            else:
                shutil.rmtree(folder / command.output)
        mine = (folder / command.output / "mine.txt").exists()
        for _ in range(AT_ONCE):
            done += ended(start(command.arguments, folder), moments.uniform(0, seconds)) == -signal.SIGKILL
        if code := ended(start(command.arguments, folder)):
            wrong.append(f"ends with {code}: {_said(folder)}")
        else:
            wrong += apart(_compared, command, folder, undisturbed, expected, mine)
        shutil.rmtree(folder)
    return done, wrong


def _compared(command: Command, folder: Path, undisturbed: Path, expected: Any, mine: bool) -> list[str]:
    """What is wrong with what a command left in the end."""
    wrong = [] if command.result(folder / command.output) == expected else ["another result"]
    wrong += examined(str(folder / command.output)).amiss
    # A folder's lock stays where the folder was there before: whoever removes it lets two processes hold it.
    left = {name for name in _names(folder) - _names(undisturbed) if Path(name).name != ".lock"}
    if mine and f"{command.output}/mine.txt" not in left:
        wrong.append("removed a file that is not its own")
    return wrong + sorted(f"left {name}" for name in left if not name.endswith("mine.txt"))


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _said(folder: Path) -> str:
    return " | ".join((folder / ".log").read_text(errors="replace").splitlines()[-3:])
