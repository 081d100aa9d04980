"""Results tables made by hand, and one of plausible size."""

import io

import numpy as np
import pandas as pd
from PIL import Image

from pellucid.experiments.record import MetricRecord, RunRecord
from pellucid.experiments.store import Results

NAN = float("nan")
KEYS = ["model", "variant", "method", "layer", "metric"]


def fact(name, axis, higher, unit="score", undefined="", by_training=False):
    return MetricRecord(
        name=name,
        axis=axis,
        unit=unit,
        higher_is_better=higher,
        paper="RISE, Sec. 4",
        undefined=undefined,
        of_model=axis == "fidelity",
        by_training=by_training,
    )


FACTS = {
    "insertion": fact("insertion", "faithfulness", True),
    "deletion": fact("deletion", "faithfulness", False),
    "total_variation": fact("total_variation", "noise", False, "variation per pixel"),
    "prediction_difference": fact("prediction_difference", "fidelity", False, "100 x probability"),
}


def results(values, reference=None, curves=(), facts=FACTS, pictures=()):
    """A table of ``{(model, variant, method, layer, metric): values, one per image}``.

    ``curves`` are rows (key, at, step, values).
    """
    rows = [(key, None, None, numbers) for key, numbers in values.items()] + list(curves)
    columns = [
        (*(part or None for part in key), at, step, f"image-{index}", f"class {index % 2}", value, 0, "pellucid 0")
        for key, at, step, numbers in rows
        for index, value in enumerate(numbers)
    ]
    table = pd.DataFrame(columns, columns=[*KEYS, "at", "step", "image", "target", "value", "seed", "versions"])
    table = table.assign(training=pd.NA).astype({"at": float, "value": float, "step": object, "training": "Int64"})
    used = {key[-1] for key, *_ in rows}
    layers = {key[0]: [] for key, *_ in rows}
    for key, *_ in rows:
        if key[3] and key[3] not in layers[key[0]]:
            layers[key[0]].append(key[3])
    record = RunRecord(
        hash="0",
        identity={},
        spec={"name": "by hand", "reference": reference},
        metrics={name: entry for name, entry in facts.items() if name in used},
        layers=layers,
        images=tuple(dict.fromkeys(table["image"])),
        cells=["a"],
        versions={"pellucid": "0"},
        command="pellucid benchmark spec.toml",
    )
    shown = pd.DataFrame(pictures, columns=["image", "kind", "model", "variant", "method", "layer", "data"])
    return Results(table.astype(dict.fromkeys([*KEYS, "step", "image", "target"], "category")), record, shown)


METHODS = ("random", "edges", "gradient", "smoothgrad", "guided_backprop", "gradcam")
VARIANTS = ("original", "backward", "forward")
LAYERS = ("input", "layer1.1", "layer2.1")
MORE_FACTS = {
    "insertion(steps='auto')": fact("insertion", "faithfulness", True, "mean score"),
    "deletion(steps='auto')": fact("deletion", "faithfulness", False, "mean score"),
    "cascade_ssim": fact(
        "cascade_ssim", "sanity", False, "similarity", "a map is constant, and its structure undefined"
    ),
    "mass_outside": fact("mass_outside", "localization", False, "share"),
    "pointing_game": fact("pointing_game", "localization", True, "hit"),
    "class_change": fact("class_change", "sensitivity", True, "1 - similarity"),
    "total_variation": fact("total_variation", "noise", False, "variation per pixel"),
    "raw_total_variation": fact("raw_total_variation", "noise", False, "sum of differences"),
    "prediction_difference": fact("prediction_difference", "fidelity", False, "100 x probability"),
    "top1": fact("top1", "fidelity", True, "correct"),
}
CURVES = {
    "insertion(steps='auto')": [(step / 14, None) for step in range(15)],
    "deletion(steps='auto')": [(step / 14, None) for step in range(15)],
    "cascade_ssim": list(enumerate(["none", "fc", "layer2.1", "layer1.1", "conv1"])),
}


def plausible(
    images=12, methods=METHODS, variants=VARIANTS, layers=LAYERS, shown=2, models=("net",), facts=MORE_FACTS
):
    """A table as a run writes it, with curves and pictures."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=images)
    values, curves = {}, []
    for model in models:
        for variant in variants:
            for m, method in enumerate(methods):
                for depth, layer in enumerate(layers):
                    for metric, entry in facts.items():
                        if entry.axis == "fidelity":
                            continue
                        skill = 0.15 * (m + 1) + 0.05 * depth + 0.04 * (variant != "original")
                        numbers = np.clip(skill * (1 if entry.higher_is_better else -1) + 0.5, 0.05, 9)
                        numbers = np.abs(numbers + 0.08 * image + 0.05 * rng.normal(size=images))
                        if metric == "cascade_ssim":
                            numbers[: m % 3] = NAN
                        key = (model, variant, method, layer, metric)
                        values[key] = numbers
                        curves += [
                            (key, at, step, numbers * (1 - index / 30) + 0.02 * rng.normal(size=images))
                            for index, (at, step) in enumerate(CURVES.get(metric, ()))
                        ]
            for metric in ("prediction_difference", "top1"):
                if metric in facts:
                    share = {"original": 0.0, "backward": 0.0, "forward": 20.0}[variant]
                    grade = rng.uniform(0, 2, images) * share if metric != "top1" else rng.integers(0, 2, images)
                    values[model, variant, "", "", metric] = grade
    pictures = drawings(models, variants, methods, layers, shown)
    return results(values, "gradient", curves, facts, pictures)


def drawings(models, variants, methods, layers, shown):
    """Photos, and maps at each layer's own size."""
    rng = np.random.default_rng(1)
    rows = []
    for index in range(shown):
        pixels = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        rows.append((f"image-{index}", "photo", "net", None, None, None, png(pixels)))
        rows += [
            (f"image-{index}", "map", model, variant, method, layer, npy(rng.normal(size=2 * [64 // 2**depth])))
            for model in models
            for variant in variants
            for method in methods
            for depth, layer in enumerate(layers)
        ]
    return rows


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values.astype(np.float16))
    return buffer.getvalue()


# The spec of a run of two cells, of a second.
SMALL_SPEC = {
    "models": ["shapes-resnet"],
    "images": {"source": "shapes:2"},
    "methods": ["gradient"],
    "metrics": ["total_variation"],
    "images_per_cell": 1,
    "pictures": 1,
}
