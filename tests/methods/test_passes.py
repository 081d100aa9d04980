"""How many rows a pass sees: never more than the bound, and on a processor no more than its caches like."""

import pytest
import torch

from pellucid.passes import rows_per_pass


@pytest.mark.parametrize(
    ("max_batch", "size", "rows"),
    [(64, 224, 16), (8, 224, 8), (64, 64, 64), (1024, 64, 196), (64, 1536, 2), (1, 1536, 1)],
)
def test_rows_are_bounded_by_pixels(max_batch: int, size: int, rows: int) -> None:
    assert rows_per_pass(max_batch, torch.empty(1, 3, size, size)) == rows


def test_a_gpu_takes_all_that_the_bound_allows() -> None:
    assert rows_per_pass(64, torch.empty(1, 3, 224, 224, device="meta")) == 64
