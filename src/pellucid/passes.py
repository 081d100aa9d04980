"""What a forward pass gets: how many rows, where, and in which precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from .errors import InvalidParameter, OutOfMemory, require_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MaxBatch = int | Literal["auto"]
_T = TypeVar("_T")

_HEARD: ContextVar[Callable[[int], None] | None] = ContextVar("heard", default=None)

DEFAULT_MAX_BATCH = 64  # the default bound, and where "auto" begins
SINGLE = {"mps"}  # devices that have no float64
CPU_PIXELS = 16 * 224 * 224  # on a CPU an image costs less in batches whose activations stay in its caches

# What was found to fit into memory, of models by the size of images.
_FITTING: WeakKeyDictionary[nn.Module, dict[Any, int]] = WeakKeyDictionary()


def placed(images: Tensor, model: nn.Module) -> Tensor:
    """Images on the model's device, in the precision of most of its weights."""
    # A few parameters may be more precise than the rest, as norms of a model in half precision are.
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.numel()
    dtype = max(sizes, key=lambda one: sizes[one], default=images.dtype)
    return images.to(next(model.parameters(), images).device, dtype)


def exact(x: Tensor) -> Tensor:
    """In float64, or in float32 on a device that has nothing better."""
    return x.float() if x.device.type in SINGLE else x.double()


def rows_per_pass(max_batch: int, images: Tensor) -> int:
    """The rows of one pass under the bound ``max_batch``: all that it allows on a GPU, on a CPU as many as pay.

    What is computed does not depend on it. Gradients of ResNet-18 at 224 x 224 took 1.03, 0.97, 1, 1.06 and 1.21
    times the processor time of batches of 16 in batches of 4, 8, 16, 32 and 64 (AMD EPYC with AVX2, one thread).
    Smaller images go in larger batches.
    """
    if images.device.type != "cpu":
        return max_batch
    return min(max_batch, max(CPU_PIXELS // images.shape[-2:].numel(), 2))


def count_rows(rows: int) -> None:
    """Say that a forward pass of so many rows was run: who runs a model calls this."""
    if (heard := _HEARD.get()) is not None:
        heard(rows)


@contextmanager
def counting(each: Callable[[int], None] = lambda rows: None) -> Iterator[list[int]]:
    """The rows of every forward pass that is run inside, in a list that grows; ``each`` is called with them."""
    found: list[int] = []
    outer = _HEARD.get()

    def hear(rows: int) -> None:
        found.append(rows)
        each(rows)
        # Counts may be nested: whoever counts outside hears of these passes, too.
        if outer is not None:
            outer(rows)

    token = _HEARD.set(hear)
    try:
        yield found
    finally:
        _HEARD.reset(token)


def fitting(model: nn.Module, images: Tensor, max_batch: MaxBatch, work: Callable[[int], _T]) -> _T:
    """What ``work`` gives for a bound on the rows of its passes, which must not change what it gives.

    ``"auto"`` is 64, or half as many as long as memory runs out: ``work`` is begun anew then, and what fitted is
    remembered of the model and the size of images.

    Raises:
        InvalidParameter: ``max_batch`` is no whole number from 1, nor ``"auto"``.
        OutOfMemory: the memory does not hold a pass of ``max_batch`` rows; for ``"auto"``, of one.
    """
    most = most_rows(max_batch)
    known = _FITTING.setdefault(model, {})
    size = tuple(images.shape[1:]), str(images.device)
    if max_batch == "auto":
        # What fitted once is where the next call begins, so that it does not run out of memory again.
        most = known.get(size) or rows_per_pass(most, images)
    while True:
        try:
            return work(most)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if max_batch != "auto" or most == 1:
                raise OutOfMemory(_too_large(most, images)) from error
        known[size] = most = most // 2  # out here, where no traceback keeps what the attempt had computed


def most_rows(max_batch: MaxBatch) -> int:
    """The bound as a number, the first that is tried of ``"auto"``."""
    if isinstance(max_batch, str):
        if max_batch != "auto":
            raise InvalidParameter(f"max_batch={max_batch!r}: give a whole number of at least 1, or 'auto'")
        return DEFAULT_MAX_BATCH
    require_count("max_batch", max_batch)
    return max_batch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as CUDA, MPS, a CPU's allocator or Python say it."""
    import torch

    told = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return told or (
        isinstance(error, RuntimeError)
        and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    )


def _too_large(rows: int, images: Tensor) -> str:
    size = " x ".join(map(str, images.shape[-2:]))
    if rows == 1:
        return f"the memory of {images.device} does not hold one image of {size}; give smaller ones"
    return f"max_batch={rows}: the memory of {images.device} does not hold so many images of {size}; give 'auto'"
