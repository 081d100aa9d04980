"""One bad input after another: each is answered by a result or by one error of the project's own, soon, in bounds.

``PELLUCID_FUZZ=200`` tries that many inputs of each target, others in each run; by default it is a few, always the
same.
"""

from __future__ import annotations

import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pellucid.errors import PellucidError

TRIALS = int(os.environ.get("PELLUCID_FUZZ", "0"))
MOST_SECONDS, MOST_BYTES, LONGEST = 5, 1 << 30, 2000  # of the processor, of memory more than before, of a message

tried = settings(
    max_examples=TRIALS or 20,
    deadline=None,
    derandomize=not TRIALS,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Hang(BaseException):
    """An input took too long."""


@contextmanager
def _limited() -> Iterator[None]:
    def end(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_BYTES >> 10


def answer(call: Callable[[], object]) -> PellucidError | None:
    """The error of a call, or None where it has a result; anything else that is raised ends the test."""
    with warnings.catch_warnings(), _limited():
        warnings.simplefilter("ignore")
        try:
            call()
        except PellucidError as error:
            found = error
        else:
            return None
    assert 0 < len(str(found)) <= LONGEST
    return found


# What stands where something else should.

NUMBERS = [0, -1, 1, 3, 2.5, -0.0, 1e300, 10**30, float("nan"), float("inf"), True, False]
TEXTS = [
    "",
    " ",
    "x",
    "0",
    "../..",
    "/dev/zero",
    "a\0b",
    "\ud800",
    "é",
    "x" * 5000,
    "[" * 3000,
    "%s{}$HOME",
    "a,b",
]
PLAIN = [None, *NUMBERS, *TEXTS, [], {}, [[]], [None], ["a", 1], {"a": {"b": [1]}}, [0.5] * 4]
junk = st.one_of(st.sampled_from(PLAIN), st.integers(), st.floats(), st.text(max_size=20))


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """Plain values with one thing inside, anywhere, replaced, left out or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)) > 1:
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)) > 1:
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], draw(changed(value[index])), *value[index + 1 :]]
    if isinstance(value, dict) and value and draw(st.booleans()):
        gone = draw(st.sampled_from(sorted(value)))
        return {key: one for key, one in value.items() if key != gone}
    if isinstance(value, dict) and draw(st.booleans()):
        return value | {draw(st.text(max_size=8)): draw(junk)}
    return draw(junk)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with some of them flipped, cut off or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(found) - 1, 0)))
        match draw(st.sampled_from(["flip", "flip", "flip", "cut", "put", "zero"])):
            case "flip" if found:
                found[place] ^= draw(st.integers(1, 255))
            case "cut":
                del found[place : place + draw(st.integers(1, 1 + len(found)))]
            case "put":
                found[place:place] = draw(st.binary(min_size=1, max_size=8))
            case _:
                found[place : place + 8] = bytes(len(found[place : place + 8]))
    return bytes(found)
