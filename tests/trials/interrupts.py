"""Raises KeyboardInterrupt at the lines and instructions of a call that installs hooks and modes."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import pellucid as pl
from pellucid import layers, layouts, undo
from pellucid.errors import InvalidModel, PellucidError
from pellucid.methods import base, network, repeatable
from pellucid.metrics.scoring import Scorer
from pellucid.rules import base as rules
from pellucid.rules import draws

# Where hooks and modes are installed and removed: also Python's and torch's own code of it.
INSTALLING = frozenset(
    file.__file__
    for file in (
        *(undo, layers, layouts, base, network, repeatable, rules, draws),
        *(contextlib, torch.overrides, torch.utils.hooks, torch.autograd.grad_mode, torch.utils._contextlib),
    )
)


class Small(nn.Module):
    """Convolutions, a skip, an activation in place and one by function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.block(x)).mean((2, 3)))


class Noisy(Small):
    """Random, which is found out by hooks on all of its modules."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(3)


def explained(text: str, **named: Any) -> Callable[[nn.Module, Tensor], Any]:
    return lambda model, images: dict(pl.method(text)(model, images, 0, **named))


def scored(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return {"scores": Scorer(model, pl.EpsilonLRP().at("block")).scores(images)}


CALLS: dict[str, tuple[type[nn.Module], Callable[[nn.Module, Tensor], Any]]] = {
    "gradient": (Small, explained("gradient", layers="all")),
    "paths": (Small, explained("integrated(smoothed(gradient, samples=2), steps=2)", layers=["input", "block"])),
    "deeplift": (Small, explained("deeplift", layers="all", variant="backward")),
    "confined": (Small, explained("guided_backprop", layers=["stem"], variant=pl.EpsilonLRP().at("block"))),
    "scored": (Small, scored),
    "random": (Noisy, explained("gradient")),
}


class Bell:
    """Raises KeyboardInterrupt at the n-th events of the files while it is on; counts them where none is asked."""

    def __init__(self, *at: int) -> None:
        self.at, self.count, self.places = at, 0, []

    def __enter__(self) -> Bell:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in INSTALLING:
            return None
        frame.f_trace_opcodes = True
        if event in ("line", "opcode"):
            self.count += 1
            if self.count in self.at:
                self.places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {event}")
                raise KeyboardInterrupt
        return self._trace


def outcome(name: str, model: nn.Module, images: Tensor) -> Any:
    try:
        return CALLS[name][1](model, images)
    except PellucidError as error:
        return type(error)


def same(one: Any, other: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one is other
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def hooks_on(model: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith(("_hooks", "_hooks_always_called", "_hooks_with_kwargs")) and hooks
    )


def left(model: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """What a call left that it must not."""
    wrong = {
        "hooks": hooks_on(model) > 0,
        "modes": any(not mode.is_over for mode in _get_current_function_mode_stack()),
        "no gradients": not torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "weights": any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()),
    }
    return [name for name, is_so in wrong.items() if is_so]


def interrupts(count: int) -> tuple[int, Counter[str]]:
    """Interrupt calls at ``count`` evenly spaced events; how many were, and what was wrong afterwards.

    A few are not: Python itself ignores what is raised while it throws a generator away. Every tenth call is
    interrupted a second time soon after, mostly while it cleans up; then the next call must find what was left.
    The traceback is kept meanwhile, as a notebook keeps it.
    """
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    done, wrong = 0, Counter()
    for name, (kind, _) in CALLS.items():
        torch.manual_seed(0)
        original = kind().eval()
        expected = outcome(name, copy.deepcopy(original), images)
        assert (expected is InvalidModel) == (name == "random"), expected
        with Bell() as bell:
            outcome(name, copy.deepcopy(original), images)
        here = -(-count // len(CALLS))
        for number in range(here):
            place = 1 + number * bell.count // here
            found = _interrupted(name, original, images, expected, place, again=number % 10 == 9)
            done += found is not None
            wrong.update(found or [])
    return done, wrong


def _interrupted(
    name: str, original: nn.Module, images: Tensor, expected: Any, place: int, again: bool
) -> list[str] | None:
    """What is wrong after a call that was interrupted; None if it was not."""
    model = copy.deepcopy(original)
    bell = Bell(place, *([place + 5 + place % 60] if again else []))
    kept = None
    try:
        with bell:
            outcome(name, model, images)
    except KeyboardInterrupt as interrupt:
        kept = interrupt
    sys.settrace(None)
    found = left(model, original.state_dict()) if len(bell.places) < 2 else []
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not same(outcome(name, model, images), expected):
            found.append("another map")
    if _get_current_function_mode_stack():  # of an earlier call, whose traceback Python threw away in this one
        outcome(name, model, images)
        found += ["a mode that is over"] if _get_current_function_mode_stack() else []
    found += [f"{what} after the next call" for what in left(model, original.state_dict())]
    return [f"{name}, {' then '.join(bell.places)}: {what}" for what in found] if kept or found else None
