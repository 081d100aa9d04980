"""Files of images, tables, weights, facts, surrogates and runs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from PIL import Image

from pellucid.data.reading import read_image
from pellucid.data.sources import open_images
from pellucid.experiments.store import PICTURE_ROWS, ROWS, Results, checksum
from pellucid.files import sealed
from pellucid.models.preprocess import Preprocess
from pellucid.models.small import PAPER_MODELS
from pellucid.models.weights import read_facts, read_state_dict
from pellucid.models.zoo import load_model
from pellucid.report.benchmark_page import benchmark_page
from pellucid.variants.paths import strided_convolutions
from pellucid.variants.surrogate import Surrogate, load_surrogate
from tests.fuzz.trial import PLAIN, answer, changed, damaged, tried


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "parts").mkdir()
    (folder / "pictures").mkdir()
    return folder


# Images.

PIXELS = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)


def written(kind: str, pixels: np.ndarray = PIXELS, **settings: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **settings)
    return stream.getvalue()


def array(values: np.ndarray, save: Any = np.save) -> bytes:
    stream = io.BytesIO()
    save(stream, values)
    return stream.getvalue()


FILES = [written(kind) for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM")]
FILES += [
    array(PIXELS),
    array(PIXELS, np.savez_compressed),
    array(PIXELS.astype("float32")),
    array(PIXELS.astype("O")),
]


@tried
@given(
    st.one_of(st.sampled_from(FILES).flatmap(damaged), st.binary(max_size=60)),
    st.sampled_from([256, (8, 8), None]),
)
def test_images(content: bytes, resize: Any) -> None:
    answer(lambda: Preprocess(resize=resize, crop=None)(read_image(content)))


# Tables.

png, blank = written("PNG"), written("PNG", PIXELS * 0 + 255)
cells = st.one_of(
    st.sampled_from([None, png, blank, png[:40], b""]),
    st.sampled_from([{"bytes": png, "path": "a.png"}, {"bytes": None, "path": "a.png"}]),
    st.sampled_from(
        [{"bytes": None, "path": path} for path in ("/dev/zero", "../x", "pipe", "", "a\0b", "x" * 5000)]
    ),
    st.sampled_from([{"path": 3}, {"bytes": "text"}, {"other": 1}, 3, 2.5, "a.png", "/etc/passwd", [png], [[1]]]),
)
labels = st.sampled_from([None, 0, 1, -1, -5, 10**12, 2.5, True, "cat", [1], {"a": 1}, b"x"])
boxes = st.sampled_from(
    [
        None,
        [],
        [[0.0, 0.0, 5.0, 5.0]],
        [[1.0, 2.0]],
        [[float("nan")] * 4],
        [0.5] * 4,
        "box",
        [["a"] * 4],
        {"bbox": [[1.0] * 4]},
        [[5.0, 5.0, 0.0, 0.0]],
        [None],
        [[None] * 4],
        7,
    ]
)
features = st.sampled_from(
    [None, {"label": {"names": ["a", "b"]}}, {"label": {"names": "ab"}}, {"label": 3}, [], "x"]
)


def table(image: Any, label: Any, mask: Any, box: Any, told: Any) -> bytes:
    columns = {"image": [image] * 2, "label": [label] * 2, "mask": [mask] * 2, "boxes": [box] * 2}
    content = pyarrow.table(
        {name: column for name, column in columns.items() if column[0] is not None or name == "image"}
    )
    content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(content, stream)
    return stream.getvalue()


def read_all(path: Path) -> None:
    for sample in open_images(path):
        Preprocess()(sample.image)


@tried
@given(cells, labels, cells, boxes, features)
def test_tables(place: Path, image: Any, label: Any, mask: Any, box: Any, told: Any) -> None:
    if not (place / "pipe").exists():
        os.mkfifo(place / "pipe")
    (place / "t.parquet").write_bytes(table(image, label, mask, box, told))
    answer(lambda: read_all(place / "t.parquet"))


@tried
@given(
    damaged(
        table({"bytes": png, "path": "a.png"}, 1, blank, [[0.0, 0.0, 5.0, 5.0]], {"label": {"names": ["a", "b"]}})
    )
)
def test_damaged_tables(place: Path, content: bytes) -> None:
    (place / "t.parquet").write_bytes(content)
    answer(lambda: read_all(place / "t.parquet"))


# Weights.

NETWORK = (
    PAPER_MODELS["mnist-cnn"].factory()
    if "mnist-cnn" in PAPER_MODELS
    else next(iter(PAPER_MODELS.values())).factory()
)
NAME = "mnist-cnn" if "mnist-cnn" in PAPER_MODELS else next(iter(PAPER_MODELS))
STATE = {name: tensor.contiguous() for name, tensor in NETWORK.state_dict().items()}


def packed(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def parts(content: bytes) -> tuple[Any, bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


SAFE = safetensors.torch.save(STATE)
HEADER, BODY = parts(SAFE)


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


few = dict(list(STATE.items())[:2])
PTH = saved(few)


@tried
@given(changed(HEADER).map(lambda header: packed(header, BODY)))
def test_headers_of_weights(place: Path, content: bytes) -> None:
    (place / "w.safetensors").write_bytes(content)
    answer(lambda: load_model(NAME, place / "w.safetensors"))


@tried
@given(st.one_of(damaged(PTH), changed({"state_dict": {"a": 1}, "x": [1]}).map(saved)))
def test_pickled_weights(place: Path, content: bytes) -> None:
    (place / "w.pth").write_bytes(content)
    answer(lambda: read_state_dict(place / "w.pth"))


FACTS = {"classes": ["a", "b"], "preprocess": Preprocess().as_dict(), "files": {"f.safetensors": "0"}}


@tried
@given(st.one_of(changed(FACTS).map(json.dumps), st.text(), st.just("[" * 100_000)))
def test_facts_beside_weights(place: Path, text: str) -> None:
    (place / "facts.json").write_bytes(text.encode(errors="surrogatepass"))
    answer(lambda: read_facts(place / "facts.safetensors"))


def surrogate() -> bytes:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, stride=2), torch.nn.Conv2d(2, 2, 3, stride=2)).eval()
    from pellucid.variants.paths import BilinearPath

    found = strided_convolutions(model, torch.zeros(1, 3, 16, 16))
    paths = tuple(BilinearPath.drawn(one, torch.Generator()) for one in found)
    from pellucid.variants.surrogate import _encoded

    return _encoded(Surrogate(found, paths, {"model": "m"}))


SURROGATE = surrogate()
OUTER, TENSORS = parts(SURROGATE)
INNER = json.loads(OUTER["__metadata__"]["surrogate"])


def resealed(inner: Any) -> bytes:
    return packed(OUTER | {"__metadata__": {"surrogate": json.dumps(inner)}}, TENSORS)


@tried
@given(
    st.one_of(changed(INNER).map(resealed), damaged(SURROGATE), changed(OUTER).map(lambda o: packed(o, TENSORS)))
)
def test_surrogates(place: Path, content: bytes) -> None:
    (place / "s.safetensors").write_bytes(content)
    answer(lambda: repr(load_surrogate(place / "s.safetensors")))


# Runs.

METRIC = {"name": "insertion", "axis": "faithfulness", "unit": "score", "higher_is_better": True, "paper": "RISE"}
RUN: dict[str, Any] = {
    "made_by": "pellucid",
    "hash": "0",
    "versions": {"pellucid": "0"},
    "command": "c",
    "identity": {"a": [1]},
    "spec": {
        "name": "n",
        "reference": "gradient",
        "images": {"source": "shapes", "skip": ["b"]},
        "methods": ["gradient"],
    },
    "metrics": {"insertion": METRIC | {"undefined": "", "of_model": False, "by_training": False}},
    "layers": {"m": ["input", "layer1"]},
    "images": ["a", "b"],
    "cells": ["one"],
}
ROW = {
    "model": "m",
    "variant": "original",
    "method": "gradient",
    "layer": "input",
    "metric": "insertion",
    "at": None,
    "step": None,
    "image": "a",
    "value": 0.5,
    "seed": 0,
    "versions": "v",
}
TABLE = [
    ROW | {"image": image, "method": method, "value": value, "at": at}
    for image in ("a", "b")
    for method, value in (("gradient", 0.5), ("edges", 0.25))
    for at in (float("nan"), 0.0, 1.0)
]
MAP = array(np.ones((3, 3), np.float16))
PICTURE = {
    "image": "a",
    "kind": "map",
    "model": "m",
    "variant": "original",
    "method": "gradient",
    "layer": "input",
}


def part(rows: list[dict[str, Any]], schema: pyarrow.Schema, seal: bool = True) -> bytes:
    try:
        found = pyarrow.Table.from_pylist(rows, schema)
    except pyarrow.ArrowException:  # no file can hold it
        reject()
    if seal:
        found = found.replace_schema_metadata({b"pellucid.sha256": checksum(found), b"pellucid.run": b"0"})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(found, stream)
    return stream.getvalue()


def run(place: Path, told: bytes, rows: bytes, pictures: bytes) -> None:
    (place / "run.json").write_bytes(told)
    (place / "parts" / "one.parquet").write_bytes(rows)
    (place / "pictures" / "one.parquet").write_bytes(pictures)
    benchmark_page(Results.read(place))


SOUND = part(TABLE, ROWS), part([PICTURE | {"data": MAP}], PICTURE_ROWS)


@tried
@given(
    st.one_of(
        changed(RUN).map(lambda told: json.dumps(told).encode()),
        changed(RUN).filter(lambda told: isinstance(told, dict)).map(sealed),
    )
)
def test_records_of_runs(place: Path, told: bytes) -> None:
    answer(lambda: run(place, told, *SOUND))


def of_kinds(row: Any, kinds: dict[str, type | tuple[type, ...]]) -> bool:
    """Whether a changed row can be written into a part at all."""
    return isinstance(row, dict) and all(
        value is None or isinstance(value, kinds[key]) for key, value in row.items() if key in kinds
    )


KINDS: dict[str, Any] = dict.fromkeys(
    ("model", "variant", "method", "layer", "metric", "step", "image", "versions", "kind"), str
)
KINDS |= {"at": float, "value": float, "seed": int, "data": bytes}


@st.composite
def cell(draw: Any, row: dict[str, Any]) -> dict[str, Any]:
    """A row with one of its values replaced by another of its kind."""
    key = draw(st.sampled_from(sorted(row)))
    kind = KINDS[key]
    value = draw(
        st.sampled_from(
            [one for one in [None, *PLAIN, 2**40, -1.0, 1e308, b"", MAP[:30], png] if of_kinds({key: one}, KINDS)]
        )
    )
    fits = not (kind is int and isinstance(value, int) and abs(value) >= 2**63) and value != "\ud800"
    return row | ({key: value} if fits else {})


@tried
@given(st.lists(cell(ROW), min_size=1, max_size=4), cell(PICTURE | {"data": MAP}))
def test_parts_of_runs(place: Path, rows: list[dict[str, Any]], picture: dict[str, Any]) -> None:
    answer(lambda: run(place, sealed(RUN), part([*TABLE, *rows], ROWS), part([picture], PICTURE_ROWS)))


@tried
@given(damaged(part(TABLE, ROWS, seal=False)))
def test_damaged_parts_of_runs(place: Path, rows: bytes) -> None:
    answer(lambda: run(place, sealed(RUN), rows, SOUND[1]))


def test_what_is_damaged_here_is_sound_before(place: Path) -> None:
    assert answer(lambda: run(place, sealed(RUN), *SOUND)) is None
    (place / "sound.parquet").write_bytes(
        table(png, 1, blank, [[0.0, 0.0, 5.0, 5.0]], {"label": {"names": ["a", "b"]}})
    )
    assert answer(lambda: read_all(place / "sound.parquet")) is None
    (place / "sound.safetensors").write_bytes(SURROGATE)
    assert answer(lambda: load_surrogate(place / "sound.safetensors")) is None
    (place / "net.safetensors").write_bytes(SAFE)
    assert answer(lambda: load_model(NAME, place / "net.safetensors")) is None
    assert answer(lambda: read_image(FILES[0])) is None
