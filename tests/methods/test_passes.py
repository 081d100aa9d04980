"""How many rows a pass sees: never more than the bound, and on a processor no more than its caches like."""

import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import InvalidLayer, OutOfMemory, SkippedLayerWarning
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


class Choosy(nn.Module):
    """``more`` runs for the images alone whose mean feature is above a bound."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.bound = 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        chosen = h.mean((1, 2, 3)) > self.bound
        if bool(chosen.any()):
            h = h.index_put((chosen,), self.more(h[chosen]))
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize("text", ["gradient", "gradcam", "smoothed(gradient, samples=2, space=layer)"])
@pytest.mark.parametrize("max_batch", [64, 1])
def test_a_layer_that_runs_for_some_images_alone_has_no_map(text: str, max_batch: int) -> None:
    model, x = seeded(Choosy, 0), images()
    means = torch.relu(model.stem(x)).mean((1, 2, 3)).sort(descending=True)
    model.bound = float(means.values[:2].detach().mean())
    x = x[means.indices]  # the first runs it, the others do not
    with pytest.raises(InvalidLayer, match=r"gives 1 row for|did not run"):
        pl.method(text)(model, x, 1, "more", max_batch=max_batch)
    with pytest.warns(SkippedLayerWarning, match="some images alone"):
        found = pl.method(text)(model, x, 1, ["stem", "mor*"], max_batch=max_batch)
    assert list(found) == ["stem"]
    assert pl.method(text)(model, x[:1], 1, "more")["more"].shape[:2] == (1, 4)


def test_a_layer_that_runs_for_some_draws_alone_has_no_map() -> None:
    """The draws that miss it would be missing from the mean, whatever they do to the class."""
    model, x = seeded(Choosy, 0), images()[:1]
    model.bound = float(torch.relu(model.stem(x)).mean())  # noise lifts it here and lowers it there
    with pytest.warns(SkippedLayerWarning, match="some images alone"):
        found = pl.method("smoothed(gradient, samples=6)")(model, x, 1, ["stem", "mor*"])
    assert list(found) == ["stem"]
    found = pl.method("smoothed(gradient, samples=6)")(model, x, 1, ["stem", "mor*"], max_batch=1)
    assert list(found) == ["stem"]
