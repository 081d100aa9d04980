"""Feature-map occlusion by hand on linear layers, and against a loop over units, orders and levels."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import InvalidData, InvalidLayer, InvalidModel, InvalidParameter, NotFinite
from pellucid.metrics.base import Case, Measured
from pellucid.metrics.occlusion import BackgroundOcclusion, ObjectOcclusion, unit_masks
from pellucid.metrics.scoring import Scorer
from pellucid.sampling import noise_like
from pellucid.seeds import fold_in
from tests.networks import images as random_images
from tests.networks import plain, randomise

LEFT = torch.tensor([[True, True, False, False]]).expand(4, 4)


class Sums(nn.Module):
    """Class k's logit is the sum of channel k of what ``body`` makes of the image."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).sum((2, 3))


def case(model: nn.Module, images: Tensor, masks: Tensor, layers: list[str], targets=0, **settings) -> Case:
    max_batch = settings.pop("max_batch", 64)
    attributions = pl.Gradient()(model, images, targets, layers)
    scorer = Scorer(model, max_batch=max_batch)
    return Case(pl.Gradient(), model, images, attributions, scorer, attributions.targets, masks=masks, **settings)


def sums() -> tuple[nn.Module, Tensor, Tensor]:
    """Two channels: 3 on the left of the first, 1 on its right; 1 everywhere in the second."""
    image = torch.ones(1, 2, 4, 4, dtype=torch.float64)
    image[0, 0, :, :2] = 3
    model = Sums(nn.Conv2d(2, 2, 1, bias=False)).double().eval()
    with torch.no_grad():
        model.body.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    return model, image, LEFT[None]


def test_both_ends_by_hand() -> None:
    """Logits (32, 16). Without the background (8, 8) less: margin 16 - 0 each; without the object (24, 8) less."""
    model, image, masks = sums()
    one = case(model, image, masks, ["input", "body"])
    for layer in ("input", "body"):
        background = BackgroundOcclusion(levels=2, orders=1).measure(one)[layer]
        assert background.curve.tolist() == [[16.0, 16.0]]
        assert background.values.tolist() == [0.0]
        target = ObjectOcclusion(levels=2, orders=1).measure(one)[layer]
        assert target.curve.tolist() == [[16.0, 0.0]]
        assert target.values.tolist() == [8.0]  # 16 - (16 + 0) / 2
        assert list(target.at) == [0.0, 1.0]


def test_every_level_by_hand_where_order_does_not_matter() -> None:
    """One class wins by the sum of equal units: the margin falls by the same step at each level."""
    image = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(16, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.stack([torch.ones(16), torch.zeros(16)]))
    one = case(model, image, LEFT[None], ["0"])
    found = ObjectOcclusion(levels=5, orders=3).measure(one)["0"]  # 0, 2, 4, 6, 8 of 8 units
    torch.testing.assert_close(found.curve, torch.tensor([[16.0, 14, 12, 10, 8]]).double(), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.values, torch.tensor([4.0]).double(), rtol=1e-13, atol=0)


def loop(metric, model: nn.Module, tail: nn.Module, layer: str, one: Case, objects: Tensor, seed: int) -> Measured:
    """The definition, unit by unit: each image, level and order on its own, from the plain network above."""
    with torch.no_grad():
        activations = one.images if layer == "input" else model[0](one.images)
    curves = []
    for image, activation in enumerate(activations):
        shape = activation.shape
        cell = [one.images.shape[-2] // shape[1], one.images.shape[-1] // shape[2]]
        margins = []
        for fraction in metric.fractions:
            logits = []
            for order in range(metric.orders):
                noise = noise_like(activation[None], [fold_in(seed, order)])
                units = []
                for c in range(shape[0]):
                    for y in range(shape[1]):
                        for x in range(shape[2]):
                            rows = slice(y * cell[0], (y + 1) * cell[0])
                            columns = slice(x * cell[1], (x + 1) * cell[1])
                            on = float(objects[image, rows, columns].double().mean()) >= 0.5
                            if on == metric.on_object:
                                units.append((float(noise.view(shape)[c, y, x]), c, y, x))
                hidden = activation.clone()
                for _, c, y, x in sorted(units)[: round(fraction * len(units))]:
                    hidden[c, y, x] = 0
                with torch.no_grad():
                    logits.append(tail(hidden[None])[0])
            mean = torch.stack(logits).mean(0).tolist()
            target = mean.pop(int(one.scored[image]))
            margins.append(target - max(mean))
        curves.append(margins)
    curve = torch.tensor(curves, dtype=torch.float64)
    area = (curve[:, 1:] + curve[:, :-1]).sum(1) / 2 / (len(metric.fractions) - 1)
    return Measured(curve[:, 0] - area, curve)


@pytest.mark.parametrize("metric", [BackgroundOcclusion(levels=4, orders=3), ObjectOcclusion(levels=4, orders=3)])
@pytest.mark.parametrize("max_batch", [1, 5, 64])
def test_agrees_with_a_loop_over_units(metric, max_batch: int) -> None:
    head = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3))
    model = plain(nn.Conv2d(2, 3, 2, stride=2), *head)
    images = random_images(3, 8, channels=2)
    masks = torch.rand(3, 8, 8) < torch.tensor([0.3, 0.5, 0.6])[:, None, None]
    several = case(model, images, masks, ["input", "0"], [0, 1, 2], seed=7, max_batch=max_batch)
    found = metric.measure(several)
    for layer, tail in (("input", model), ("0", model[1:])):
        expected = loop(metric, model, tail, layer, several, masks, seed=7)
        torch.testing.assert_close(found[layer].curve, expected.curve, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(found[layer].values, expected.values, rtol=1e-12, atol=1e-13)


class Residual(nn.Module):
    """A skip passes the middle layer by, so rows cannot enter there alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.fc(self.norm(x + torch.relu_(self.middle(x))).mean((2, 3)))


def test_layers_that_a_skip_passes_by() -> None:
    model = randomise(Residual())
    images = random_images(2, 8)
    masks = LEFT.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(2, 8, 8)
    two = case(model, images, masks, ["middle"], [0, 1])
    found = ObjectOcclusion(levels=2, orders=1).measure(two)["middle"].curve
    with torch.no_grad():
        x = model.first(images)
        middle = model.middle(x)
        middle[..., :4] = 0
        logits = model.fc(model.norm(x + middle.relu()).mean((2, 3)))
    for image, target in enumerate([0, 1]):
        others = [float(value) for k, value in enumerate(logits[image]) if k != target]
        assert float(found[image, 1]) == pytest.approx(float(logits[image, target]) - max(others), rel=1e-12)


def test_the_orders_do_not_depend_on_the_batch_and_the_model_is_unchanged() -> None:
    model, _ = pl.load_model("shapes-resnet")
    images = torch.rand(3, 3, 64, 64)
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[:, 16:40, 20:50] = True
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    metric = BackgroundOcclusion(levels=3, orders=2)
    together = metric.measure(case(model, images, masks, ["layer2.1", "layer3.1"], [0, 1, 2]))
    for image in range(3):
        alone = metric.measure(
            case(model, images[image : image + 1], masks[:1], ["layer2.1", "layer3.1"], [image], max_batch=1)
        )
        for layer in alone:
            torch.testing.assert_close(alone[layer].curve[0], together[layer].curve[image], rtol=1e-4, atol=1e-5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_are_as_many_as_the_definition_needs_and_batches_bounded() -> None:
    """Per image and layer (levels - 2) orders + 2 rows, beside one clean row per image for all layers."""
    model, _ = pl.load_model("shapes-resnet")
    images = torch.rand(2, 3, 64, 64)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[:, 16:40, 20:50] = True
    two = case(model, images, masks, ["layer2.1", "layer3.1"], max_batch=4)
    sizes = []
    with torch.no_grad():
        handle = model.fc.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        BackgroundOcclusion(levels=4, orders=3).measure(two)
        handle.remove()
    assert two.scorer.rows == 2 + 2 * 2 * (2 * 3 + 2)
    assert max(sizes) == 4
    rows = two.scorer.rows
    ObjectOcclusion(levels=2, orders=3).measure(two)  # the clean rows are known
    assert two.scorer.rows == rows + 2 * 2 * 2


def test_a_cell_is_the_objects_if_the_object_covers_half_of_it() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, :3] = masks[0, 3, 3] = True
    assert unit_masks(masks, torch.zeros(1, 5, 2, 2), "x").tolist() == [[[[True, False], [False, False]]]]
    assert unit_masks(masks, torch.zeros(1, 5, 4, 4), "x")[0, 0].equal(masks[0])


def test_a_layer_without_units_there_has_no_value() -> None:
    model, image, _ = sums()
    small = torch.zeros(1, 4, 4, dtype=torch.bool)
    small[0, 0, 0] = True
    pooled = Sums(nn.Sequential(nn.AvgPool2d(4), model.body)).eval()
    one = case(pooled, image, small, ["body.0"])
    metric = ObjectOcclusion(levels=3, orders=2)
    found = metric.measure(one)["body.0"]
    assert math.isnan(found.values.item())
    assert metric.undefined
    assert found.curve[0].tolist() == [found.curve[0, 0].item()] * 3
    assert not BackgroundOcclusion(levels=3, orders=2).measure(one)["body.0"].values.isnan().any()


def test_what_cannot_be_occluded_is_refused() -> None:
    model, image, masks = sums()
    with pytest.raises(InvalidParameter, match="levels=1"):
        BackgroundOcclusion(levels=1)
    with pytest.raises(InvalidParameter, match="orders=0"):
        ObjectOcclusion(orders=0)
    with pytest.raises(InvalidData, match="no masks and no boxes"):
        BackgroundOcclusion().measure(case(model, image, None, ["body"]))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).double().eval()
    with pytest.raises(InvalidLayer, match=r"layer '0' gives shape \(1, 32\)"):
        BackgroundOcclusion().measure(case(flat, image, masks, ["0"]))
    for single in (nn.Sequential(nn.Conv2d(2, 1, 4), nn.Flatten()), nn.Sequential(nn.Conv2d(2, 1, 4), Passing())):
        with pytest.raises(InvalidModel, match="one class"):
            BackgroundOcclusion().measure(case(single.double().eval(), image, masks, ["input"]))


class Passing(nn.Module):
    """Gives one number for each image (B,)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()


class Returning(Sums):
    """Returns its logits as ``form`` makes them."""

    def __init__(self, body: nn.Module, form: Callable[[Tensor], object]) -> None:
        super().__init__(body)
        self.form = form

    def forward(self, x: Tensor) -> object:
        return self.form(super().forward(x))


@pytest.mark.parametrize("form", [lambda logits: (logits, logits + 1), lambda logits: {"logits": logits}])
def test_logits_are_found_in_what_the_model_returns(form) -> None:
    model, image, masks = sums()
    one = case(Returning(model.body, form).eval(), image, masks, ["body"])
    assert ObjectOcclusion(levels=2, orders=1).measure(one)["body"].curve.tolist() == [[16.0, 0.0]]


def test_a_rule_at_named_modules_finds_them() -> None:
    """The scored model runs under its variant's rules by its own names."""
    body = nn.Sequential(
        nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, stride=2, padding=1)
    )
    model = Sums(body).double().eval()
    images = random_images(2, 8, channels=2)
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, 2:6, 2:6] = True
    found = []
    for rule in (pl.SmoothedDownsampling("forward"), pl.SmoothedDownsampling("forward").at("body.*")):
        attributions = pl.Gradient()(model, images, 0, ["body.1"])
        scorer = Scorer(model, rule)
        one = Case(pl.Gradient(), model, images, attributions, scorer, attributions.targets, masks=masks)
        found.append(BackgroundOcclusion(levels=3, orders=1).measure(one)["body.1"].curve)
    torch.testing.assert_close(*found, rtol=0, atol=0)


class Beside(Sums):
    """Adds to class 0's logit the sum of each image that it sees, one after another, past the layer."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        for number, image in enumerate(x):
            logits = logits + image.sum() * (torch.arange(len(logits)) == number)[:, None] * torch.tensor([1, 0])
        return logits


def test_what_passes_a_layer_by_image_by_image_stays() -> None:
    """Logits (32 + 48, 16): without the layer's background (8 + 48, 8)."""
    model, image, masks = sums()
    for count in (1, 3):
        one = case(
            Beside(model.body).eval(),
            image.expand(count, -1, -1, -1).contiguous(),
            masks.expand(count, -1, -1),
            ["body"],
        )
        found = ObjectOcclusion(levels=2, orders=1).measure(one)["body"]
        assert found.curve.tolist() == [[64.0, 48.0]] * count


def test_logits_that_are_not_finite_are_no_missing_units() -> None:
    """A class that divides by the sum of all units, which is 0 once they are."""
    model, image, masks = sums()
    one = case(Returning(model.body, lambda logits: logits / logits[:, 1:]).eval(), image, masks | True, ["body"])
    with pytest.raises(NotFinite, match="once units of layer 'body' are 0"):
        ObjectOcclusion(levels=2, orders=1).measure(one)


@pytest.mark.parametrize("metric", [BackgroundOcclusion(levels=4, orders=3), pl.metric("insertion")])
def test_what_is_scored_runs_outside_autocast(metric) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36 * 4, 3)).eval()
    images = random_images(2, 14).float()
    one = case(model, images, torch.ones(2, 14, 14).tril().bool(), ["0"])
    expected = metric.measure(one)["0"].values
    again = case(model, images, torch.ones(2, 14, 14).tril().bool(), ["0"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metric.measure(again)["0"].values, expected)
