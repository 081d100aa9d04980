"""Undoes what a call attaches to a model or to its thread, wherever the call is interrupted.

Ctrl-C raises between any two instructions, also in the code that cleans up. So what undoes a change is noted
before the change is made, on a stack of the thread's own; and who stands further out on the stack undoes what an
interrupt kept from being undone further in. What two interrupts left, the next call finds there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import torch

_OF_THREAD = threading.local()


class Undo:
    """While open, remembers how changes are undone (``later``); at its end undoes them, the last one first."""

    def __enter__(self) -> Self:
        """Stand on the stack of this thread."""
        self._stack: list[Undo] = _OF_THREAD.__dict__.setdefault("stack", [])
        self._waiting: list[Callable[[], Any]] = []
        self._stack.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        """Undo what stands further in, if an interrupt kept it from ending, and then this."""
        # Those further in come off first: they were made later, and may rely on what this one changed.
        while self in self._stack:
            self._stack[-1]._end()

    def later(self, undo: Callable[[], Any]) -> None:
        """Note how a change is undone, before it is made; undoing must do no harm if it was not, or twice."""
        self._waiting.append(undo)

    def _end(self) -> None:
        while self._waiting:
            # It is taken off only once it is done: after an interrupt
            # in between it is done again, which does no harm.
            self._waiting[-1]()
            self._waiting.pop()
        self._stack.pop()


class Guard(Undo):
    """The outermost of a call: also puts back whether gradients, inference mode and autocast are on.

    It is opened by a function's ``with``. Where that function is found to run no more, two interrupts ended it:
    what it left is undone first.
    """

    def __enter__(self) -> Self:
        """Undo what a dead call left on this thread, and keep the thread's switches."""
        self._grad = torch.is_grad_enabled()
        self._autocast = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
        stack: list[Undo] = _OF_THREAD.__dict__.setdefault("stack", [])
        running = list(map(id, _frames(sys._getframe())))
        dead = [one for one in stack if isinstance(one, Guard) and id(one._frame) not in running]
        while any(one in stack for one in dead):
            stack[-1]._end()
            torch.set_grad_enabled(self._grad)
        self._frame: FrameType | None = sys._getframe(1)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        """Undo everything."""
        super().__exit__(*raised)
        for device, enabled in self._autocast.items():
            torch.set_autocast_enabled(device, enabled)
        torch.set_grad_enabled(self._grad)
        self._frame = None

    def inference(self, enabled: bool) -> torch.inference_mode:
        """Inference mode, switched on or off; to be entered at once."""
        mode = torch.inference_mode(enabled)
        # Not left to the end of the object, which a traceback may keep: it would switch gradients at that moment.
        self.later(lambda: mode.__exit__(None, None, None) if hasattr(mode, "_inference_mode_context") else None)
        return mode


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back
