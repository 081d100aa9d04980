"""Models in any precision are explained and graded by the commands, as in single precision but for rounding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pellucid.catalog import METRICS
from pellucid.cli import app
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import Spec
from pellucid.training.criteria import Retraining

pytestmark = pytest.mark.filterwarnings("ignore:the model computes in")

NETWORK = """
import torch
from torch import nn
from pellucid.models.preprocess import Preprocess

preprocess = Preprocess(resize=48, crop=48)


def single(precision=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8),
    ).eval().to(precision)


def half():
    return single(torch.float16)


def brain():
    return single(torch.bfloat16)


def double():
    return single(torch.float64)
"""
EXACT = {"half": 0.02, "brain": 0.15, "double": 1e-4}  # of a value
SMOOTH = ["total_variation", "insertion(steps=4)", "deletion(steps=4)", "mass_outside", "cascade_ssim"]


def graded(kind: str, metrics: list[str], folder: Path, methods: tuple[str, ...] = ("gradient",)) -> Spec:
    content = {
        "models": [f"{folder}/net.py:{kind}"], "images": "shapes:3", "methods": methods, "metrics": metrics,
        "layers": ["0"], "target": "label", "device": "cpu", "pictures": 0,
    }  # fmt: skip
    results = benchmark(Spec.model_validate(content), folder / f"{kind}-{len(metrics)}")
    assert results.failed == {}
    return results.table


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precisions")
    (folder / "net.py").write_text(NETWORK)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXACT)
def test_every_metric_takes_every_precision(place: Path, kind: str) -> None:
    metrics = [name for name, metric in METRICS.items() if not issubclass(metric, Retraining)]
    table = graded(kind, metrics, place, ("gradient", "smoothed(gradient, samples=2)", "gradcam"))
    assert set(table["metric"]) == set(metrics)


@pytest.mark.parametrize("kind", EXACT)
def test_values_are_those_of_single_precision_but_for_rounding(place: Path, kind: str) -> None:
    expected, found = (graded(one, SMOOTH, place)["value"].to_numpy() for one in ("single", kind))
    np.testing.assert_allclose(found, expected, rtol=EXACT[kind], atol=EXACT[kind])


@pytest.mark.parametrize("kind", EXACT)
def test_photos_are_explained(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    arguments = ["explain", "shapes:2", "--layers", "0", "--methods", "gradient,deeplift,gradcam", "--model"]
    for one in ("single", kind):
        result = CliRunner().invoke(app, [*arguments, f"net.py:{one}", "-o", one])
        assert result.exit_code == 0, result.output
    expected, found = (torch.stack(list(attributions(place / one).values())) for one in ("single", kind))
    error = (found - expected).norm() / expected.norm()
    assert error < EXACT[kind]


def attributions(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    files = sorted((folder / "attributions").glob("*.safetensors"))
    assert len(files) == 2
    named = {(file.stem, key): value for file in files for key, value in load_file(file).items()}
    return {place: value for place, value in named.items() if "gradcam" not in place[1]}
