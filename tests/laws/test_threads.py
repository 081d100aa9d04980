"""Two threads, one model, different rules: each sees its own rules and layers only."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from tests.networks import ActivatedSkip, images, seeded

METHODS = {
    "guided": pl.Gradient(rules=(pl.GuidedReLU(),)),
    "deconv": pl.Gradient(rules=(pl.DeconvReLU(),)).smoothed(3),
    "rectified": pl.Gradient(rules=(pl.RectifiedReLU(40.0),), multiply=True),
    "integrated": pl.Gradient().integrated(4),
    "deeplift": pl.DeepLift(),
    "lrp": pl.method("lrp_epsilon"),
}
LAYERS = [["input", "stem"], ["block2"], ["input", "block1", "block3"]]

pytestmark = pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning", "ignore::pellucid.EmptyMapWarning")


@pytest.mark.parametrize("repeat", range(4))
def test_concurrent_calls_on_one_model_give_the_maps_of_calls_one_by_one(repeat: int) -> None:
    model = seeded(lambda: ActivatedSkip([nn.ReLU(inplace=True)] * 4), repeat)
    x = images(2, 12, repeat)
    jobs = [(name, layers) for name in METHODS for layers in LAYERS] * 3

    def run(job: tuple[str, list[str]]) -> dict[str, Tensor]:
        name, layers = job
        return dict(METHODS[name](model, x, [0, 1], layers=layers, seed=repeat))

    expected = [run(job) for job in jobs[: len(jobs) // 3]] * 3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, jobs))
    for job, one, many in zip(jobs, expected, found, strict=True):
        for layer in one:
            assert torch.equal(many[layer], one[layer]), (job, layer)
    assert not any(module._forward_hooks for module in model.modules())


def test_two_threads_in_the_same_forward_pass_do_not_see_each_others_rules() -> None:
    """Both stand inside the model at once: a barrier in its forward pass waits for the other."""
    barrier = threading.Barrier(2, timeout=60)

    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.relu = nn.ReLU()
            self.fc = nn.Linear(4, 3)
            self.meet = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            if self.meet:
                barrier.wait()
            x = self.relu(x)
            if self.meet:
                barrier.wait()
            return self.fc(x.mean((2, 3)))

    model = seeded(Meeting)
    nn.init.constant_(model.fc.bias, 9)  # no sigmoid's outputs, which one thread alone would look into
    x = images(2, 8)
    calls = [
        lambda: pl.Gradient(rules=(pl.GuidedReLU(),))(model, x, [0, 1], layers=["input", "conv"]),
        lambda: pl.Gradient(rules=(pl.DeconvReLU(),))(model, x, [0, 1], layers=["relu", "input"]),
    ]
    expected = [call() for call in calls]
    assert not torch.equal(expected[0]["input"], expected[1]["input"])
    model.meet = True
    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            found = [future.result() for future in [pool.submit(call) for call in calls]]
        for one, many in zip(expected, found, strict=True):
            assert set(one) == set(many)
            for layer in one:
                assert torch.equal(many[layer], one[layer])


def test_a_plain_forward_pass_in_another_thread_is_left_alone() -> None:
    """While one thread explains, another trains or predicts: no rule, no hook, no replaced activation."""
    model = seeded(lambda: ActivatedSkip([nn.ReLU(inplace=True)] * 4))
    x = images(2, 12)
    plain = torch.autograd.functional.jacobian(lambda t: model(t).sum(), x)
    stop = threading.Event()
    seen: list[Tensor] = []

    def predict() -> None:
        while not stop.is_set():
            seen.append(torch.autograd.functional.jacobian(lambda t: model(t).sum(), x))

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        for _ in range(10):
            METHODS["guided"].integrated(3)(model, x, 1, layers=["input", "block1", "block2"])
    finally:
        stop.set()
        thread.join()
    assert seen
    assert all(torch.equal(value, plain) for value in seen)
