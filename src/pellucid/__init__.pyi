"""The public face of pellucid: what stands here is what there is; nothing is imported before it is used."""

from .catalog import METHODS, METRICS, VARIANTS, method, metric, variant
from .data.sources import open_images
from .errors import (
    CanceledMapWarning,
    CompletenessWarning,
    DisplacedMapWarning,
    EmptyMapWarning,
    FlatMapWarning,
    GradientWarning,
    ImageMapWarning,
    InputWarning,
    PatternWarning,
    PellucidError,
    RuleNotApplied,
)
from .experiments.bulk import MapsRun, read_maps, write_maps
from .experiments.on_ray import on_ray
from .experiments.runners import benchmark
from .experiments.spec import MapsSpec, Spec, read_spec
from .experiments.store import Results
from .findings.comparison import compare
from .findings.trust import TrustCard, trust_card
from .heatmap import clip_percentiles, heatmap, normalize
from .layers import layer_names
from .methods.attributions import Attributions
from .methods.base import Method
from .methods.baselines import Edges, Random
from .methods.cam import GradCAM
from .methods.external import External
from .methods.gradient import DeepLift, Gradient
from .metrics.base import Case, Measured, Metric
from .metrics.faithfulness import Curve, deletion, insertion
from .metrics.noise import checkerboard, total_variation
from .metrics.randomization import cascade
from .metrics.scoring import Scorer
from .metrics.similarity import hog_similarity, spearman, ssim
from .models.detection import Detection
from .models.preprocess import Preprocess
from .models.segmentation import Segmentation, segmentation_targets
from .models.zoo import LoadedModel, load_model
from .outputs import Classifier, Difference, two_answers
from .report.figures import Overlay
from .report.notebook import show
from .rules.base import BackwardRule, Rule
from .rules.conv import PaddingTrick, SmoothedDownsampling
from .rules.deeplift import RescaleChoice, RescaleElementwise, RescaleMaxPool, RescaleProduct, RescaleSoftmax
from .rules.lrp import AlphaBetaLRP, AttentionLRP, EpsilonLRP, GammaLRP, NormalizationLRP, ZBoxLRP
from .rules.pool import ProportionalPooling
from .rules.relu import DeconvReLU, GuidedReLU, RectifiedReLU
from .sampling import Noise, Path, Sampling
from .training.surrogates import train_surrogate
from .variants.base import Variant
from .variants.surrogate import Surrogate, load_surrogate

__all__ = [
    "METHODS",
    "METRICS",
    "VARIANTS",
    "AlphaBetaLRP",
    "AttentionLRP",
    "Attributions",
    "BackwardRule",
    "CanceledMapWarning",
    "Case",
    "Classifier",
    "CompletenessWarning",
    "Curve",
    "DeconvReLU",
    "DeepLift",
    "Detection",
    "Difference",
    "DisplacedMapWarning",
    "Edges",
    "EmptyMapWarning",
    "EpsilonLRP",
    "External",
    "FlatMapWarning",
    "GammaLRP",
    "GradCAM",
    "Gradient",
    "GradientWarning",
    "GuidedReLU",
    "ImageMapWarning",
    "InputWarning",
    "LoadedModel",
    "MapsRun",
    "MapsSpec",
    "Measured",
    "Method",
    "Metric",
    "Noise",
    "NormalizationLRP",
    "Overlay",
    "PaddingTrick",
    "Path",
    "PatternWarning",
    "PellucidError",
    "Preprocess",
    "ProportionalPooling",
    "Random",
    "RectifiedReLU",
    "RescaleChoice",
    "RescaleElementwise",
    "RescaleMaxPool",
    "RescaleProduct",
    "RescaleSoftmax",
    "Results",
    "Rule",
    "RuleNotApplied",
    "Sampling",
    "Scorer",
    "Segmentation",
    "SmoothedDownsampling",
    "Spec",
    "Surrogate",
    "TrustCard",
    "Variant",
    "ZBoxLRP",
    "benchmark",
    "cascade",
    "checkerboard",
    "clip_percentiles",
    "compare",
    "deletion",
    "heatmap",
    "hog_similarity",
    "insertion",
    "layer_names",
    "load_model",
    "load_surrogate",
    "method",
    "metric",
    "normalize",
    "on_ray",
    "open_images",
    "read_maps",
    "read_spec",
    "segmentation_targets",
    "show",
    "spearman",
    "ssim",
    "total_variation",
    "train_surrogate",
    "trust_card",
    "two_answers",
    "variant",
    "write_maps",
]
