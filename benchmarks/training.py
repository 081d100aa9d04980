"""Speed of training against the same work written by hand, as ratios.

    python benchmarks/training.py [--runs 5] [--model resnet18] [--size 224] [--batch 16] [--steps 4]
                                  [--device cpu|cuda]

Surrogate: a step of `train_surrogate` against one frozen forward pass with hooks that keep the strided
convolutions' inputs and outputs, then the paths' own forward and backward passes and one step of Adam. Both run
in turn, `--steps` steps at a time, so that a busy machine slows both; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pellucid.training.surrogates import train_surrogate
from timing import machine

Step = Callable[[], object]
Features = dict[str, tuple[Tensor, Tensor]]


@dataclass
class ByHand:
    """Paths as modules, trained on features that hooks caught."""

    model: nn.Module
    device: str

    def __post_init__(self) -> None:
        self.strided = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Conv2d) and module.stride[0] > 1 and name != "conv1"
        }
        self.paths = nn.ModuleDict(
            {
                name.replace(".", "-"): nn.ModuleList(
                    [
                        nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1),
                        nn.Conv2d(conv.out_channels, conv.out_channels, 3, padding=1),
                    ]
                )
                for name, conv in self.strided.items()
            }
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.paths.parameters(), lr=1e-3)
        self.features: Features = {}
        for name, conv in self.strided.items():
            conv.register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            self.features[name] = (inputs[0], output)

        return keep

    def step(self, images: Tensor) -> float:
        on_gpu = images.is_cuda
        if on_gpu:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled=on_gpu):
            with torch.no_grad():
                self.model(images)
            losses = []
            for name in self.strided:
                x, y = self.features[name]
                first, second = self.paths[name.replace(".", "-")]
                inner = F.interpolate(first(x), y.shape[2:], mode="bilinear", align_corners=False)
                losses.append(F.l1_loss(second(inner), y))
            loss = torch.stack(losses).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def step_seconds(model: nn.Module, images: Tensor, batch: int) -> Iterator[float]:
    """Seconds of each step of ours but the first, which also finds the convolutions."""
    ends: list[float] = []
    train_surrogate(model, images, 1, batch_size=batch, progress=lambda *_: ends.append(time.perf_counter()))
    yield from (end - start for start, end in pairwise(ends))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("runs", 5), ("size", 224), ("batch", 16), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = torchvision.models.get_model(options.model, weights=None).eval().requires_grad_(False)
    model, hooked = model.to(options.device), torchvision.models.get_model(options.model, weights=None)
    hooked = hooked.eval().requires_grad_(False).to(options.device)
    images = torch.randn((options.steps + 1) * options.batch, 3, options.size, options.size, device=options.device)
    by_hand = ByHand(hooked, options.device)
    by_hand.step(images[: options.batch])
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(options.runs):
        ours += step_seconds(model, images, options.batch)
        for part in images.split(options.batch)[1:]:
            start = time.perf_counter()
            by_hand.step(part)
            bare.append(time.perf_counter() - start)
    one, other = statistics.median(ours), statistics.median(bare)
    print(
        f"surrogate of {options.model}, {options.size} x {options.size}, batch {options.batch}, "
        f"on {options.device} ({machine()}): by hand {other:.3f} s a step, "
        f"ours {one:.3f} s, {one / other:.2f} of it (to reach: <= 1.1); {options.batch / one:.0f} images/s"
    )


if __name__ == "__main__":
    main()
