"""How many rows a pass sees: never more than the bound, and on a processor no more than its caches like."""

import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import OutOfMemory
from pellucid.metrics.sensitivity import fgsm
from pellucid.passes import rows_per_pass
from tests.networks import images, seeded


@pytest.mark.parametrize(
    ("max_batch", "size", "rows"),
    [(64, 224, 16), (8, 224, 8), (64, 64, 64), (1024, 64, 196), (64, 1536, 2), (1, 1536, 1)],
)
def test_rows_are_bounded_by_pixels(max_batch: int, size: int, rows: int) -> None:
    assert rows_per_pass(max_batch, torch.empty(1, 3, size, size)) == rows


def test_a_gpu_takes_all_that_the_bound_allows() -> None:
    assert rows_per_pass(64, torch.empty(1, 3, 224, 224, device="meta")) == 64


class Hungry(nn.Module):
    """A convolution and a head, for which the processor has memory up to ``most`` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        x.new_empty(2**58 if len(x) > self.most else 1)  # the allocator's own error
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def hungry(most: int) -> Hungry:
    model = seeded(lambda: Hungry(most))
    assert isinstance(model, Hungry)
    return model


def test_auto_halves_where_the_processors_own_memory_runs_out() -> None:
    model, x = hungry(3), images(7)
    found = pl.Gradient().smoothed(5)(model, x, 0, max_batch="auto")["input"]
    expected = pl.Gradient().smoothed(5)(hungry(64), x, 0)["input"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert max(model.seen) > 3
    model.seen.clear()
    scores = pl.Scorer(model, max_batch="auto").scores(x)
    assert max(model.seen) <= 3  # what fitted is remembered of the model
    torch.testing.assert_close(scores, pl.Scorer(hungry(64)).scores(x), rtol=1e-12, atol=1e-14)
    assert torch.equal(
        fgsm(hungry(2), x, torch.zeros(7).long(), 0.1, "auto"), fgsm(model, x, torch.zeros(7).long(), 0.1, 3)
    )


def test_curves_go_on_in_smaller_batches() -> None:
    x, maps = images(3), images(3)[:, 0]
    found = pl.deletion(hungry(2), x, 0, maps, steps=6, max_batch="auto")
    expected = pl.deletion(hungry(64), x, 0, maps, steps=6)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-12, atol=1e-14)


def test_a_single_row_that_does_not_fit_is_said() -> None:
    for max_batch, told in (("auto", "does not hold one image of 8 x 8"), (4, "max_batch=4: .* give 'auto'")):
        with pytest.raises(OutOfMemory, match=told):
            pl.Gradient()(hungry(0), images(2), 0, max_batch=max_batch)
