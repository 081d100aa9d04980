"""Texts of methods, metrics, variants, layouts and specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pellucid as pl
from pellucid.catalog import COMBINATORS, METHODS, METRICS, metric, variant
from pellucid.cli.options import checked_layouts, parted
from pellucid.errors import InvalidParameter
from pellucid.experiments.inputs import parsed
from pellucid.experiments.spec import read_spec
from pellucid.layouts import layout
from tests.fuzz.trial import PLAIN, answer, changed, junk, tried

WORDS = ["samples", "steps", "std", "relative", "moment", "space", "baseline", "quadrature", "q", "proportional"]
WORDS += [
    "epsilon",
    "gamma",
    "absolute",
    "max_pool",
    "size",
    "clip",
    "channels",
    "tolerance",
    "similarity",
    "nothing",
]
values = st.one_of(
    st.sampled_from([repr(value) for value in PLAIN]),
    st.sampled_from(
        ["1e999", "-1e999", "--1", "1j", "gradient", "1" * 30, "f(x)", "'a' 'b'", "{[]: 1}", "*x", "..."]
    ),
    st.text(max_size=6),
)
names = st.one_of(st.sampled_from([*METHODS, *COMBINATORS, *METRICS]), st.text(max_size=8))
settings_ = st.lists(st.tuples(st.sampled_from(WORDS), values), max_size=3)


def written(name: str, inner: str, words: list[tuple[str, str]]) -> str:
    return f"{name}({', '.join([*([inner] if inner else []), *(f'{word}={value}' for word, value in words)])})"


texts = st.recursive(names, lambda inside: st.builds(written, names, inside, settings_), max_leaves=6)
anything = st.one_of(texts, st.text(), junk)
long = st.builds(
    lambda piece, times: piece * times,
    st.sampled_from(["-", "(", "[", "~", "smoothed(", "a.", "{"]),
    st.integers(1, 30_000),
)


@tried
@given(st.one_of(anything, long))
def test_methods(text: Any) -> None:
    answer(lambda: pl.method(text))


@tried
@given(st.one_of(anything, long))
def test_metrics(text: Any) -> None:
    answer(lambda: metric(text))


@tried
@given(st.one_of(st.text(), long, st.text(max_size=300).map("{}.safetensors".format)))
def test_variants_and_layouts(text: str) -> None:
    answer(lambda: variant(text))
    answer(lambda: layout(text))
    answer(lambda: checked_layouts(parted([text])))


SPEC: dict[str, Any] = {
    "models": [{"name": "shapes-resnet", "weights": "random", "classes": ["a", "b"], "alias": "m"}],
    "images": {"source": "shapes:3", "count": 2, "every": 1, "skip": ["a"], "skip_unusable": True, "root": "data"},
    "methods": ["gradient", "smoothed(gradient, samples=2)"],
    "variants": ["original"],
    "layers": ["input"],
    "layouts": {"layer1": "bchw"},
    "metrics": ["insertion(steps=4)", "roar"],
    "target": "scored",
    "score": "logits",
    "reference": "gradient",
    "pictures": 1,
    "seed": 3,
    "max_batch": 8,
    "device": "cpu",
    "training": {"network": "cifar-cnn", "source": "shapes", "fractions": [0.1, 0.5], "seeds": 2, "epochs": 1},
}


@tried
@given(changed(SPEC))
def test_specs(content: Any) -> None:
    if isinstance(content, dict):
        answer(lambda: parsed(read_spec(options=content)))


TOML = """
methods = ["gradient"]
metrics = ["total_variation"]
models = ["shapes-resnet"]
images = {source = "shapes:3", count = 2}
[training]
network = "cifar-cnn"
source = "shapes"
"""


def lined(found: Any) -> str:
    return "\n".join(map(str, found)) if isinstance(found, list) else str(found)


@tried
@given(st.one_of(changed(TOML.splitlines()).map(lined), changed(SPEC).map(json.dumps), long))
def test_files_of_specs(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "spec.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    answer(lambda: read_spec(path))


def test_a_sound_text_is_answered_by_a_result() -> None:
    """What is damaged here is sound before."""
    assert answer(lambda: pl.method("smoothed(gradient, samples=2)")) is None
    assert answer(lambda: read_spec(options={**SPEC, "metrics": ["insertion(steps=4)"]})) is None
    assert isinstance(answer(lambda: pl.method("smoothed(gradient, samples=0)")), InvalidParameter)
