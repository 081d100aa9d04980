"""Speed of attribution against the bare loop written by hand and against Captum, as ratios.

    python benchmarks/attribution.py [--runs 7] [--device cpu|cuda] [--part speed|memory|all] [--markdown FILE]

ResNet-18 with random weights, and one row of ViT-B/16's, 224 x 224, batch 4. Every row's contenders run in turn,
so that a busy machine slows all of them; a ratio is of medians. The bare loop makes the same passes with plain
autograd and hooks, parameters frozen, at the best of the batch sizes tried for it. Captum's rows need captum.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import pellucid as pl
from timing import Work, machine, timed

SIZE, BATCH = 224, 4


@dataclass
class Row:
    """One line of the table: what is computed, and who computes it."""

    name: str
    bare: Work
    ours: Work
    captum: Work | None
    target: str
    images: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, one: str, other: str) -> float | None:
        if one not in self.seconds or other not in self.seconds:
            return None
        return statistics.median(self.seconds[one]) / statistics.median(self.seconds[other])


def resnet18(device: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval().requires_grad_(False).to(device)


def score(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return model(images).gather(1, targets[:, None]).sum()


def bare_gradient(model: nn.Module, images: Tensor, targets: Tensor, layers: list[str]) -> list[Tensor]:
    """One forward and one backward pass that yields the gradient at the input and at every layer."""
    found: list[Tensor] = []
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda _, __, output: found.append(output))
        for layer in layers
    ]
    images = images.detach().requires_grad_()
    total = score(model, images, targets)
    for handle in handles:
        handle.remove()
    return list(torch.autograd.grad(total, [images, *found]))


def bare_ig(model: nn.Module, images: Tensor, targets: Tensor, steps: int, batch: int) -> Tensor:
    """Integrated gradients by hand: whole batches of images at as many steps as fit into ``batch``."""
    per = max(1, batch // len(images))
    places = (torch.arange(steps, device=images.device) + 0.5) / steps
    total = torch.zeros_like(images)
    for part in places.split(per):
        rows = (part.view(-1, 1, 1, 1, 1) * images).flatten(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(score(model, rows, targets.repeat(len(part))), rows)
        total += gradient.view(len(part), *images.shape).sum(0)
    return total * images / steps


def bare_smoothgrad(model: nn.Module, images: Tensor, targets: Tensor, samples: int, batch: int) -> Tensor:
    """SmoothGrad by hand."""
    per = max(1, batch // len(images))
    total = torch.zeros_like(images)
    for start in range(0, samples, per):
        count = min(per, samples - start)
        noise = torch.randn(count, *images.shape, device=images.device) * 0.15
        rows = (images + noise).flatten(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(score(model, rows, targets.repeat(count)), rows)
        total += gradient.view(count, *images.shape).sum(0)
    return total / samples


def bare_layer_ig(
    model: nn.Module, images: Tensor, targets: Tensor, layers: list[str], steps: int
) -> list[Tensor]:
    """Layer integrated gradients by hand: activations once, then the blocks above each layer for all steps."""
    blocks = [
        (f"layer{stage}.{block}", model.get_submodule(f"layer{stage}.{block}"))
        for stage in range(1, 5)
        for block in range(2)
    ]

    def activations(x: Tensor) -> dict[str, Tensor]:
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        found = {}
        for name, block in blocks:
            found[name] = x = block(x)
        return found

    with torch.no_grad():
        here, there = activations(images), activations(torch.zeros_like(images[:1]))
    places = (torch.arange(steps, device=images.device) + 0.5) / steps
    results = []
    for layer in layers:
        above = [block for _, block in blocks[[name for name, _ in blocks].index(layer) + 1 :]]
        difference = here[layer] - there[layer]
        rows = (there[layer] + places.view(-1, 1, 1, 1, 1) * difference).flatten(0, 1).requires_grad_()
        x = rows
        for block in above:
            x = block(x)
        logits = model.fc(model.avgpool(x).flatten(1))
        total = logits.gather(1, targets.repeat(steps)[:, None]).sum()
        (gradient,) = torch.autograd.grad(total, rows)
        results.append(gradient.view(steps, *difference.shape).mean(0) * difference)
    return results


def captum_rows(model: nn.Module, images: Tensor, targets: Tensor, layers: list[str]) -> dict[str, Work]:
    """The same maps by Captum, or nothing if it is not installed."""
    try:
        from captum import attr
    except ImportError:
        return {}
    modules = [model.get_submodule(layer) for layer in layers]
    few, fewer = images[:2], targets[:2]

    def gradients() -> None:
        attr.Saliency(model).attribute(images.clone().requires_grad_(), target=targets, abs=False)
        for module in modules:
            attr.LayerGradientXActivation(model, module, multiply_by_inputs=False).attribute(
                images, target=targets
            )

    def layer_ig() -> None:
        for module in modules:
            attr.LayerIntegratedGradients(model, module).attribute(few, target=fewer, n_steps=20)

    def smoothgrad() -> None:
        tunnel = attr.NoiseTunnel(attr.Saliency(model))
        tunnel.attribute(
            images.clone().requires_grad_(),
            nt_type="smoothgrad",
            nt_samples=15,
            stdevs=0.15,
            target=targets,
            abs=False,
        )

    return {
        "gradient": gradients,
        "integrated": lambda: attr.IntegratedGradients(model).attribute(
            images, target=targets, n_steps=50, internal_batch_size=32
        ),
        "smoothgrad": smoothgrad,
        "layer integrated": layer_ig,
        "guided": lambda: attr.GuidedBackprop(model).attribute(images.clone().requires_grad_(), target=targets),
        "deconv": lambda: attr.Deconvolution(model).attribute(images.clone().requires_grad_(), target=targets),
    }


def best_batch(work: Callable[[int], object], sizes: tuple[int, ...]) -> int:
    """The batch size at which a bare loop is fastest."""
    return min(sizes, key=lambda size: min(timed(lambda: work(size)) for _ in range(2)))


def rows_of(model: nn.Module, device: str) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).to(device)
    targets = torch.arange(BATCH, device=device)
    layers = pl.layer_names(model)[1:]
    captum = captum_rows(model, images, targets, layers)
    sizes = (4, 8, 16, 32) if device == "cpu" else (32, 64, 200)
    ig = best_batch(lambda size: bare_ig(model, images, targets, 50, size), sizes)
    smooth = best_batch(lambda size: bare_smoothgrad(model, images, targets, 15, size), sizes)

    def ours(text: str, where: object = "input", count: int = BATCH, batch: int = 64) -> Work:
        method = pl.method(text)
        return lambda: method(model, images[:count], targets[:count], where, max_batch=batch)

    def single() -> object:
        return bare_gradient(model, images, targets, layers)

    def bare_layers() -> object:
        return bare_layer_ig(model, images[:2], targets[:2], layers, 20)

    everywhere = ["input", *layers]
    return [
        Row("gradient, input + 8 blocks", single, ours("gradient", everywhere), captum.get("gradient"),
            "<= 1.1 bare", BATCH),
        Row("guided backprop, input + 8 blocks", single, ours("guided_backprop", everywhere), None,
            "<= 1.1 bare", BATCH),
        Row("guided backprop, input", single, ours("guided_backprop"), captum.get("guided"), "", BATCH),
        Row("deconvnet, input", single, ours("deconvnet"), captum.get("deconv"), "", BATCH),
        Row("rectgrad, input + 8 blocks", single, ours("rectgrad", everywhere), None, "<= 1.3 bare", BATCH),
        Row("deeplift, input + 8 blocks", single, ours("deeplift", everywhere), None, "<= 2.2 bare", BATCH),
        Row(f"integrated gradients, 50 steps (batch {ig})", lambda: bare_ig(model, images, targets, 50, ig),
            ours("integrated(gradient, steps=50)", batch=ig), captum.get("integrated"), "<= 1.1 bare", BATCH),
        Row(f"smoothgrad, 15 samples (batch {smooth})",
            lambda: bare_smoothgrad(model, images, targets, 15, smooth),
            ours("smoothed(gradient, samples=15)", batch=smooth), captum.get("smoothgrad"), "<= 1.1 bare", BATCH),
        Row("layer integrated gradients, 20 steps, 8 blocks", bare_layers,
            ours("integrated(gradient, steps=20)", layers, count=2), captum.get("layer integrated"),
            "", 2),
    ]  # fmt: skip


def transformer_row(device: str) -> Row:
    """ViT-B/16 at its input and all blocks."""
    torch.manual_seed(0)
    model = torchvision.models.vit_b_16(weights=None).eval().requires_grad_(False).to(device)
    torch.nn.init.normal_(model.heads.head.weight, std=0.02)  # zeros as torchvision leaves it: all maps would be 0
    images, targets = torch.randn(BATCH, 3, SIZE, SIZE).to(device), torch.arange(BATCH, device=device)
    layers = pl.layer_names(model)[1:]
    return Row(
        f"gradient, input + {len(layers)} blocks of ViT-B/16",
        lambda: bare_gradient(model, images, targets, layers),
        lambda: pl.Gradient()(model, images, targets, ["input", *layers]),
        None, "<= 1.1 bare", BATCH,
    )  # fmt: skip


def measure(rows: list[Row], runs: int) -> None:
    for row in rows:
        contenders = {"bare": row.bare, "ours": row.ours} | ({"captum": row.captum} if row.captum else {})
        for run in range(runs + 1):
            for name, work in contenders.items():
                seconds = timed(work)
                if run:  # the first round warms caches up
                    row.seconds.setdefault(name, []).append(seconds)
        print(f"  {row.name}: " + ", ".join(f"{k} {statistics.median(v):.3f} s" for k, v in row.seconds.items()),
              file=sys.stderr, flush=True)  # fmt: skip


def table(rows: list[Row]) -> str:
    lines = [
        "| what | bare, s | ours / bare | Captum / bare | Captum / ours | to reach | images/s, ours |",
        "| --- | ---: | ---: | ---: | ---: | :-- | ---: |",
    ]
    for row in rows:
        cells = [row.ratio("ours", "bare"), row.ratio("captum", "bare"), row.ratio("captum", "ours")]
        shown = " | ".join("" if cell is None else f"{cell:.2f}" for cell in cells)
        bare, ours = (statistics.median(row.seconds[name]) for name in ("bare", "ours"))
        lines.append(f"| {row.name} | {bare:.3f} | {shown} | {row.target} | {row.images / ours:.2f} |")
    return "\n".join(lines)


# Memory: each case in a process of its own, since a process's peak never falls.

MEMORY = ("idle", "plain", "nested")


def peak(case: str, device: str) -> None:
    """Run one case and print the process's peak memory in MiB."""
    model = resnet18(device)
    images = torch.randn(16, 3, SIZE, SIZE).to(device)
    targets = torch.zeros(16, dtype=torch.long, device=device)
    if case == "plain":
        for _ in range(2):
            images.requires_grad_()
            torch.autograd.grad(score(model, images, targets), images)
    elif case == "nested":
        nested = pl.method("smoothed(integrated(gradient, steps=50), samples=50)")
        nested(model, images[:1].detach(), 0, max_batch=16)
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(peak_of_process() / 2**20)


def peak_of_process() -> int:
    """Peak resident memory in bytes, from the kernel where it tells: ``getrusage`` counts the parent's, too."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory(device: str) -> str:
    """Medians of three processes for each case, in turn: what an allocator keeps varies by a tenth."""
    peaks: dict[str, list[float]] = {}
    for case in MEMORY * 3:
        command = [sys.executable, "-W", "ignore", __file__, "--peak", case, "--device", device]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.setdefault(case, []).append(float(done.stdout))
    idle, plain, nested = (statistics.median(peaks[case]) for case in MEMORY)
    above = {"plain": plain - idle, "nested": nested - idle}
    return (
        f"Peak memory above the loaded model: plain 16-image gradient {above['plain']:.0f} MiB; "
        f"smoothed(integrated(gradient, steps=50), samples=50) with max_batch=16 {above['nested']:.0f} MiB, "
        f"{above['nested'] / above['plain']:.2f} of it (whole process: {nested / plain:.2f}). Medians of three "
        f"processes each: { {case: [round(value) for value in found] for case, found in peaks.items()} }."
    )


def speed(runs: int, device: str, wanted: str) -> str:
    rows = [row for row in (*rows_of(resnet18(device), device), transformer_row(device)) if wanted in row.name]
    measure(rows, runs)
    return f"{machine()}, medians of {runs} runs in turn.\n\n{table(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--part", choices=("speed", "memory", "all"), default="all")
    parser.add_argument("--rows", default="", help="only the rows whose name holds this text")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--peak", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak, options.device)
        return
    parts = []
    if options.part != "memory":
        parts.append(speed(options.runs, options.device, options.rows))
    if options.part != "speed":
        parts.append(memory(options.device))
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
