"""Fidelity of a variant by hand, and the arithmetic of the papers' tables (facts copied from them)."""

import math

import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import InvalidData, InvalidModel, InvalidParameter, InvalidTarget
from pellucid.metrics.base import Case
from pellucid.metrics.fidelity import PredictionDifference, TargetDifference, Top1
from pellucid.metrics.scoring import Scorer

# Smooth Deep Saliency, Table 3: softmax difference x 100, (S all, S target, F all, F target).
TABLE_3 = {
    "ResNet34": (9.52, 2.39, 95.84, 30.26),
    "ResNet50": (8.90, 2.38, 39.44, 11.38),
    "ResNet50 robust": (5.84, 0.97, 38.55, 7.95),
    "ResNet18 Camelyon16": (0.41, 0.41, 3.63, 3.63),
    "ResNet34 Digipath": (4.05, 2.04, 37.33, 19.76),
}
# Table 2: accuracy (O, S, F).
TABLE_2 = {"ResNet34": (73.29, 73.12, 53.25), "ResNet50": (76.15, 76.05, 73.00), "robust": (57.89, 57.86, 56.10)}
# Table 5 and 6: reduction of the total variation in % by (S, B, F), of four models.
TABLE_5 = {
    "gradient": [(11.1, 18.7, 21.5), (8.2, 13.2, 16.3), (14.1, 18.7, 20.7), (16.9, 27.2, 28.7)],
    "deeplift": [(9.0, 12.5, 16.3), (8.7, 11.9, 15.5), (12.3, 14.6, 17.5), (11.8, 16.5, 19.5)],
    "integrated_gradients": [(7.4, 11.3, 15.0), (6.6, 9.9, 13.7), (10.0, 12.3, 15.6), (10.4, 15.1, 18.3)],
}
PRINTED_TOTALS = {
    "gradient": (12.6, 19.5, 21.8),
    "deeplift": (10.5, 13.9, 17.2),
    "integrated_gradients": (8.6, 12.2, 15.7),
}
EXACT_TOTALS = {
    "gradient": (12.575, 19.45, 21.8),
    "deeplift": (10.45, 13.875, 17.2),
    "integrated_gradients": (8.6, 12.15, 15.65),
}


def test_table_3_forward_hook_differs_8_times_as_much_as_the_surrogate() -> None:
    ratio_all = sum(f / s for s, _, f, _ in TABLE_3.values()) / len(TABLE_3)
    ratio_target = sum(f / s for _, s, _, f in TABLE_3.values()) / len(TABLE_3)
    assert ratio_all == pytest.approx(7.83, abs=0.005)
    assert ratio_target == pytest.approx(8.84, abs=0.005)
    assert (f"{ratio_all:.1f}", f"{ratio_target:.1f}") == ("7.8", "8.8")  # as the text says


@pytest.mark.parametrize("method", TABLE_5)
def test_table_5_totals_are_the_means_of_the_models(method: str) -> None:
    means = [sum(column) / 4 for column in zip(*TABLE_5[method], strict=True)]
    assert means == pytest.approx(EXACT_TOTALS[method], abs=1e-12)
    # Printed to one digit, halves rounded up.
    assert [math.floor(10 * mean + 0.5 + 1e-9) / 10 for mean in means] == pytest.approx(PRINTED_TOTALS[method])


def test_table_2_accuracy_drops() -> None:
    surrogate = [round(o - s, 2) for o, s, _ in TABLE_2.values()]
    forward = [round(o - f, 2) for o, _, f in TABLE_2.values()]
    assert surrogate == [0.17, 0.10, 0.03]
    assert forward == [20.04, 3.15, 1.79]


def test_rectgrad_table_1_random_row_has_area_1() -> None:
    """ROAR's area under and KAR's area over the curve: a random ranking removes and keeps alike."""
    removed, kept = 0.5562, 0.4438
    assert removed + kept == pytest.approx(1, abs=1e-12)


# Probabilities of three images: rows are (1/2, 1/4, 1/4), (1/4, 1/2, 1/4), (1/8, 1/8, 3/4).
PROBABILITIES = torch.tensor([[2.0, 1, 1], [1, 2, 1], [0.5, 0.5, 3]], dtype=torch.float64) / 4


class Strided(nn.Module):
    """A stem that a variant leaves alone, then one strided convolution that sums two pixels of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1, bias=False)
        self.down = nn.Conv2d(3, 3, 2, stride=2, bias=False)
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.down.weight.zero_()
            for k in range(3):
                self.down.weight[k, k, 0, 0] = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.stem(x)).flatten(1)


def images() -> Tensor:
    """2x2 images whose first pixel holds the logits; the others make the smoothed logits those times 1/4 + 0."""
    x = torch.zeros(3, 3, 2, 2, dtype=torch.float64)
    x[..., 0, 0] = PROBABILITIES.log()
    return x


def case(variant="forward", labels=None, targets=(0, 1, 2), scorer=None, **settings) -> Case:
    model = Strided().double().eval().requires_grad_(False)
    scorer = scorer(model) if scorer else Scorer(model)
    attributions = pl.Gradient()(model, images(), torch.tensor(targets), "input")
    labels = None if labels is None else torch.tensor(labels)
    explained = settings.pop("explained", model)
    return Case(
        pl.Gradient(), explained, images(), attributions, scorer, scorer.model(images()).argmax(1),
        variant=pl.VARIANTS[variant], labels=labels, **settings,
    )  # fmt: skip


def by_hand(smoothed_logits: Tensor) -> Tensor:
    return smoothed_logits.exp() / smoothed_logits.exp().sum(1, keepdim=True)


# Forward averages each pixel with its three rolled neighbours: the first pixel's logits are divided by 4.
SMOOTHED = by_hand(PROBABILITIES.log() / 4)


def test_prediction_and_target_difference_by_hand() -> None:
    found = PredictionDifference().values(case())
    torch.testing.assert_close(found, 100 * (PROBABILITIES - SMOOTHED).abs().sum(1), rtol=1e-12, atol=0)
    a, b = 2**0.25, 1.0  # the first image's smoothed odds are (2^1/4 : 1 : 1)
    expected = 100 * (abs(1 / 2 - a / (a + 2 * b)) + 2 * abs(1 / 4 - b / (a + 2 * b)))
    assert float(found[0]) == pytest.approx(expected, rel=1e-12)
    target = TargetDifference().values(case(labels=(1, 1, 0)))
    chosen = (PROBABILITIES - SMOOTHED)[torch.arange(3), torch.tensor([1, 1, 0])]
    torch.testing.assert_close(target, 100 * chosen.abs(), rtol=1e-12, atol=0)


def test_the_target_is_the_label_or_the_explained_class_as_told() -> None:
    labelled, unlabelled = case(labels=(1, 1, 0), targets=(0, 2, 2)), case(targets=(0, 2, 2))
    difference = 100 * (PROBABILITIES - SMOOTHED).abs()
    rows = torch.arange(3)
    label, explained = difference[rows, [1, 1, 0]], difference[rows, [0, 2, 2]]
    for at, given, expected in (
        ("auto", labelled, label),
        ("label", labelled, label),
        ("explained", labelled, explained),
        ("auto", unlabelled, explained),
        ("explained", unlabelled, explained),
    ):
        found = TargetDifference(at=at).values(given)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_variant_that_predicts_alike_differs_by_nothing() -> None:
    for variant in ("original", "backward"):
        same = case(variant, labels=(0, 1, 1))
        assert PredictionDifference().values(same).tolist() == [0, 0, 0]
        assert TargetDifference().values(same).tolist() == [0, 0, 0]
        assert Top1().values(same).tolist() == [1, 1, 0]


def test_a_faster_scorers_rounding_is_no_difference() -> None:
    model = Strided().eval().requires_grad_(False)
    x, targets, half = images().float(), torch.tensor([0, 1, 2]), Scorer(model, precision="bfloat16")
    given = Case(
        pl.Gradient(), model, x, pl.Gradient()(model, x, targets, "input"), half, targets,
        variant="backward",
    )  # fmt: skip
    assert torch.equal(PredictionDifference().values(given), torch.zeros(3))


def test_top1_is_the_variants() -> None:
    """The second pixel is the logits' negative, four times over: averaged, every order is reversed."""
    flipped = case(labels=(0, 1, 2))
    flipped.images[:, :, 1, 1] = -4 * flipped.images[:, :, 0, 0]
    assert Top1().values(flipped).tolist() == [0, 0, 0]
    flipped = case("original", labels=(0, 1, 2))
    flipped.images[:, :, 1, 1] = -4 * flipped.images[:, :, 0, 0]
    assert Top1().values(flipped).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("output", "passes"), [("softmax", 1), ("logits", 0)])
def test_the_scorers_passes_are_shared(output: str, passes: int) -> None:
    """Original and variant run once each for all three metrics; one is the scorer's own, if it may be.

    The model has been tried before, with the hook that counts.
    """
    several = case(labels=(0, 1, 2), scorer=lambda model: Scorer(model, "forward", output))
    runs = []
    handle = several.explained.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    Scorer(several.explained).logits(several.images.clone())
    runs.clear()
    for metric in (Top1(), PredictionDifference(), TargetDifference()):
        metric.values(several)
    handle.remove()
    assert runs == [3, 3]
    assert several.scorer.passes == passes


def test_another_scored_model_changes_nothing() -> None:
    class Other(Strided):
        def forward(self, x: Tensor) -> Tensor:
            return 10 * Strided.forward(self, x)

    model = Strided().double().eval()
    other = case(scorer=lambda _: Scorer(Other().double().eval()), explained=model)
    found = PredictionDifference().values(other)
    torch.testing.assert_close(found, 100 * (PROBABILITIES - SMOOTHED).abs().sum(1), rtol=1e-12, atol=0)


def test_sigmoid_where_the_scorer_says_so() -> None:
    one = case(scorer=lambda model: Scorer(model, output="sigmoid"))
    logits = PROBABILITIES.log()
    expected = 100 * (logits.sigmoid() - (logits / 4).sigmoid()).abs().sum(1)
    torch.testing.assert_close(PredictionDifference().values(one), expected, rtol=1e-12, atol=0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidData, match="true classes are not known"):
        Top1().values(case())
    with pytest.raises(InvalidData, match="true classes are not known"):
        TargetDifference(at="label").values(case())
    with pytest.raises(InvalidTarget, match="2 targets for 3 images"):
        Top1().values(case(labels=(0, 1)))
    with pytest.raises(InvalidTarget, match="target 3 is out of range"):
        Top1().values(case(labels=(0, 1, 3)))
    with pytest.raises(InvalidParameter, match="at='true'"):
        TargetDifference(at="true")


def test_one_output_is_right_by_itself_of_no_image() -> None:
    """The highest of one logit is the first, however sure the model is of yes."""

    class Yes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 9 + x.mean((1, 2, 3))

    x, none = torch.rand(3, 3, 4, 4), torch.zeros(3, dtype=torch.long)
    explained = pl.Attributions({}, none)
    with pytest.raises(InvalidModel, match="one class, so that none is wrong; give it two answers"):
        Top1().values(Case(None, Yes().eval(), x, explained, Scorer(Yes().eval()), none, labels=none))
    model = pl.Classifier(Yes().eval(), pl.two_answers)
    assert Top1().values(Case(None, model, x, explained, Scorer(model), none, labels=none)).tolist() == [0, 0, 0]
