"""Gradient methods: rules x samplings x a readout, and the named ones of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import require_choice
from ..rules.base import Rule
from ..rules.conv import PaddingTrick
from ..rules.deeplift import RescaleChoice, RescaleElementwise, RescaleMaxPool, RescaleProduct, RescaleSoftmax
from ..rules.lrp import AttentionLRP, EpsilonLRP, GammaLRP, NormalizationLRP
from ..rules.pool import ProportionalPooling
from ..rules.relu import DeconvReLU, Gate, GuidedReLU, Interpolation, RectifiedReLU
from ..sampling import Baseline, require_baseline
from .attributions import Estimate
from .base import Method
from .network import Network, Points

MaxPool = Literal["rescale", "gradient"]


@dataclass(frozen=True)
class Gradient(Method):
    """The gradient R of the explained logit under ``rules``, at every layer from one pass.

    Readout: R, with ``multiply`` a R for the activation a (x R at the input), with ``absolute`` |R| or |a R|.
    Under LRP's rules alone a R is relevance, which should sum to the logit: ``residuals`` tell what biases,
    epsilon and products kept.
    """

    rules: tuple[Rule, ...] = ()
    multiply: bool = False
    absolute: bool = False

    @property
    def is_gradient(self) -> bool:
        """Neither multiplied nor made absolute."""
        return not (self.multiply or self.absolute)

    @property
    def has_sign(self) -> bool:
        """Magnitudes have none."""
        return super().has_sign and not self.absolute

    @property
    def reads_below_zero(self) -> bool:
        """Magnitudes are not negative."""
        return not self.absolute

    @property
    def backward_rules(self) -> tuple[Rule, ...]:
        """The rules given."""
        return self.rules

    @property
    def promise(self) -> tuple[str, str]:
        """Relevance sums to the logit."""
        if not any(rule.conserves for rule in self.rules):
            return super().promise
        return "logit", (
            "Biases, epsilon, products of activations or an operation without a rule kept the rest: "
            "take a smaller epsilon, DeepLIFT, which is complete, or a layer that no skip passes by"
        )

    def leaf(self, network: Network, points: Points, layers: Sequence[str]) -> dict[str, Estimate]:
        """One forward and one backward pass for all layers."""
        passed = network.gradients(points, layers)
        # Relevance is the logit's at every layer: each rule hands
        # on what it gets, so sums are compared with the score.
        expected = passed.scores if self.promises(network.rules) else None
        return {
            layer: Estimate(self._read(gradient, passed.activations[layer].detach()), expected)
            for layer, gradient in passed.gradients.items()
        }

    def promises(self, rules: Sequence[Rule]) -> bool:
        """Whether this is relevance, under LRP's rules and nothing else."""
        relevance = self.multiply and not self.absolute and any(rule.conserves for rule in rules)
        return relevance and all(rule.conserves or not rule.alters_gradient for rule in rules)

    def _read(self, gradient: Tensor, activation: Tensor) -> Tensor:
        attribution = gradient * activation if self.multiply else gradient
        return attribution.abs() if self.absolute else attribution


@dataclass(frozen=True, eq=False)
class DeepLift(Method):
    """DeepLIFT: (a - a') m, with multipliers m by the rescale rule, from images and references side by side.

    ``baseline`` is the reference image (as for ``Path``). ``max_pool="rescale"`` carries each window's
    difference of maxima, so that attributions sum to f(x) - f(x') at the input and at every layer;
    ``"gradient"`` is the native max-pool gradient, which is what the papers' code computed (RectGrad by
    intent; Captum because its rule was bypassed) and is not complete below a max-pool, as residuals then say.
    """

    baseline: Baseline = "zero"
    max_pool: MaxPool = "rescale"

    def __post_init__(self) -> None:
        require_baseline(self.baseline)
        require_choice("max_pool", self.max_pool, MaxPool)

    @property
    def backward_rules(self) -> tuple[Rule, ...]:
        """Rescale at non-linearities, products and softmax, and at max-pools if asked for."""
        pools = (RescaleMaxPool(),) if self.max_pool == "rescale" else ()
        return (RescaleElementwise(), RescaleProduct(), RescaleSoftmax(), RescaleChoice(), *pools)

    @property
    def promise(self) -> tuple[str, str]:
        """The logits' difference, which the gradient of a max-pool does not keep."""
        of, remedy = super().promise
        native = "The gradient of a max-pool keeps no sum, take max_pool='rescale'; or else: "
        return of, (native + remedy if self.max_pool == "gradient" else remedy)

    def promises(self, rules: Sequence[Rule]) -> bool:
        """Whether no other rule changes what propagates back."""
        # A variant's smoothing moves multipliers to other places, and the sum of m (x - x') with them.
        return all(rule.needs_reference or not rule.alters_gradient for rule in rules)

    def leaf(self, network: Network, points: Points, layers: Sequence[str]) -> dict[str, Estimate]:
        """One pass over images and one over references, for all layers."""
        here = network.gradients(points, layers, self.baseline)
        there = here.reference
        assert there is not None
        # Summation to delta (Shrikumar et al. 2017) holds at every layer that all paths from the input go through.
        expected = here.scores - there.scores if self.promises(network.rules) else None
        estimates = {}
        for layer, multiplier in here.gradients.items():
            difference = here.activations[layer].detach() - there.activations[layer]
            estimates[layer] = Estimate(multiplier * difference, expected)
        return estimates


def gradient(absolute: bool = False) -> Gradient:
    """The gradient, signed; ``absolute=True`` is Captum's Saliency, which the sanity-check report used."""
    return Gradient(absolute=absolute)


def input_x_gradient(absolute: bool = False) -> Gradient:
    """Activation times gradient."""
    return Gradient(multiply=True, absolute=absolute)


def guided_backprop() -> Gradient:
    """Guided backpropagation."""
    return Gradient(rules=(GuidedReLU(),))


def deconvnet() -> Gradient:
    """Deconvolution."""
    return Gradient(rules=(DeconvReLU(),))


def rectgrad(
    q: float = 98.0,
    tau: float | None = None,
    gate: Gate = "PR1",
    interpolation: Interpolation = "nearest",
    padding_trick: bool = True,
    proportional: bool = False,
) -> Gradient:
    """Rectified Gradient, a R at each layer, without the final threshold (see ``heatmap``'s positive_sum)."""
    # The order does not matter: each rule has operations of its own, activations, convolutions and poolings.
    rules: list[Rule] = [RectifiedReLU(q, interpolation, tau, gate)]
    if padding_trick:
        rules.append(PaddingTrick())
    if proportional:
        rules.append(ProportionalPooling())
    return Gradient(rules=tuple(rules), multiply=True)


def lrp_epsilon(epsilon: float = 1e-4) -> Gradient:
    """Epsilon-LRP as activation times modified gradient; gates, attention's weights and divisors are constants."""
    return Gradient(rules=(EpsilonLRP(epsilon), NormalizationLRP(), AttentionLRP()), multiply=True)


def attnlrp(gamma: float | None = None, epsilon: float = 1e-6) -> Gradient:
    """AttnLRP: relevance reaches queries and keys, too, half of each product's.

    With ``gamma`` convolutions and linear layers follow the gamma rule, as Achtibat et al. 2024 advise for ViTs.
    """
    affine = () if gamma is None else (GammaLRP(gamma, epsilon),)
    return Gradient(rules=(*affine, EpsilonLRP(epsilon), NormalizationLRP(), AttentionLRP("half")), multiply=True)


def deeplift(baseline: Baseline = "zero", max_pool: MaxPool = "rescale") -> DeepLift:
    """DeepLIFT, rescale rule."""
    return DeepLift(baseline=baseline, max_pool=max_pool)
