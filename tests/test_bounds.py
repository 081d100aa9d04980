"""What one input may cost, and how messages quote what they refuse."""

import io
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import pellucid as pl
from pellucid.bounds import GRADIENTS, Bound, require_unpacked_archive
from pellucid.errors import InvalidData, InvalidParameter, UnknownName, brief, percent
from pellucid.methods.base import _chunks

BOUND = Bound("PELLUCID_MAX_THINGS", "things", 10)


def test_a_bound_names_the_amount_and_how_it_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    BOUND.require(10, "the box holds", InvalidData)
    with pytest.raises(InvalidData, match=r"^the box holds 11 things, and 10 .* PELLUCID_MAX_THINGS to what"):
        BOUND.require(11, "the box holds", InvalidData)
    monkeypatch.setenv("PELLUCID_MAX_THINGS", "11")
    BOUND.require(11, "the box holds")
    monkeypatch.setenv("PELLUCID_MAX_THINGS", "many")
    with pytest.raises(InvalidParameter, match="PELLUCID_MAX_THINGS='many': give a whole number of things"):
        BOUND.require(1, "the box holds")


def test_a_file_is_measured_before_it_is_read() -> None:
    assert BOUND.read(io.BytesIO(b"0123456789"), "the file") == b"0123456789"
    with pytest.raises(InvalidData, match=r"^the file has 11 things, and 10 are allowed"):
        BOUND.read(io.BytesIO(b"0123456789a"), "the file", InvalidData)


def test_entries_of_an_archive_that_take_the_same_bytes_are_counted_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand names of one entry of 1,000 bytes unpack to 10 MB, whatever they say that they take."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("0", bytes(1000))
        [entry] = archive.infolist()
        archive.filelist.extend([entry] * 9_999)
    require_unpacked_archive(stream, "it", InvalidData)
    monkeypatch.setenv("PELLUCID_MAX_UNPACKED", "1000000")
    with pytest.raises(InvalidData, match=r"^it holds 10,000,000 bytes unpacked, and 1,000,000 are allowed"):
        require_unpacked_archive(stream, "it", InvalidData)


def test_the_gradients_of_nested_draws_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidParameter, match="takes 1,000,000,000 gradients for each image, and 100,000"):
        pl.method("smoothed(gradient, samples=1000000000)")
    text = "smoothed(integrated(gradient, steps=400), samples=251)"
    with pytest.raises(InvalidParameter, match="100,400 gradients"):
        pl.method(text)
    monkeypatch.setenv(GRADIENTS.variable, "100400")
    assert [one.draws for one in pl.method(text).samplings] == [251, 400]


def test_draws_are_made_chunk_by_chunk() -> None:
    """A thousand billion of them cost nothing until they are asked for; those asked for are as in one list."""
    noise = pl.Noise(samples=10**12)
    assert float(noise.weights_of(torch.tensor([10**12 - 1]), torch.zeros(1))) == pytest.approx(1e-12)
    row, draw = next(_chunks(noise, 3, 4, torch.device("cpu"), False))
    assert (row.tolist(), draw.tolist()) == ([0, 1, 2, 0], [0, 0, 0, 1])
    path = list(_chunks(pl.Path(steps=3), 2, 4, torch.device("cpu"), False))
    assert [(row.tolist(), draw.tolist()) for row, draw in path] == [
        ([0, 0, 0, 1], [0, 1, 2, 0]),
        ([1, 1], [1, 2]),
    ]


@pytest.mark.parametrize("steps", [201, 500])
def test_a_quadrature_of_many_steps_is_gausss(steps: int) -> None:
    """Nodes are NumPy's; polynomials up to degree 2n - 1 have their exact integrals."""
    places, weights = pl.Path(steps=steps).nodes
    np.testing.assert_allclose(places, (np.polynomial.legendre.leggauss(steps)[0] + 1) / 2, atol=1e-14)
    for power in (0, 1, 2, 101, 2 * steps - 1):
        assert float((weights * places**power).sum()) == pytest.approx(1 / (power + 1), rel=1e-11)


TEXTS = {
    "20,000 minus signs": "-" * 20_000 + "1",
    "1,500 minus signs": "-" * 1500 + "1",
    "20,000 brackets": "(" * 20_000,
    "1,500 brackets": "(" * 1500,
    "200 nested samplings": "smoothed(" * 200 + "gradient" + ")" * 200,
    "a null": "gra\0dient",
    "a number of 5,000 digits": "1" * 5000,
    "100,000 letters": "x" * 100_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_text_that_is_no_method_is_quoted_in_short(text: str) -> None:
    with pytest.raises(
        InvalidParameter, match=r"is no method(; write a name, or smoothed|: a bracket is not)"
    ) as caught:
        pl.method(text)
    assert len(str(caught.value)) < 250


WRONG = {
    "smoothed(gradient, relative='no')": "smoothed: relative is 'no'; input should be a valid boolean",
    "smoothed(gradient, std=1e999)": "std=inf: the noise's standard deviation must be 0 or more",
    "smoothed(gradient, samples=1e20)": r"samples=1e\+20: give a whole number",
    "smoothed(gradient, samples=2, samples=3)": "smoothed is given samples twice",
    "integrated(gradient, baseline=1e999)": "baseline=inf: give 'zero', 'blur', or finite numbers",
    "rectgrad(q='a')": "rectgrad: q is 'a'; input should be a valid number",
    "gradient(absolute={[]: 1})": "is no plain value",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_a_setting_of_a_wrong_kind_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        pl.method(text)


def test_messages_quote_the_beginning_and_keep_the_way_out() -> None:
    assert brief("short") == "'short'"
    assert len(brief("x" * 10**6)) == 100
    assert len(brief([0.125] * 10**6)) <= 100
    long = InvalidData(f"the thing is {'y' * 5000}; {'so ' * 2000}do this")
    assert len(str(long)) < 1700
    assert str(long).startswith("the thing is yyyy")
    assert str(long).endswith("do this")
    assert len(str(UnknownName("method", "z" * 10_000, ["zz", "gradient"]))) < 200


def test_a_long_path_of_steps_gives_the_map_of_its_definition() -> None:
    """A linear model's gradient is its weight wherever it is taken."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    images = torch.rand(1, 3, 2, 2)
    found = pl.method("integrated(gradient, steps=1000)")(model, images, 1)["input"]
    torch.testing.assert_close(found, images * model[1].weight[1].view(1, 3, 2, 2).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "< 0.1 %"),
        (0.0004, "< 0.1 %"),
        (0.001, "0.1 %"),
        (0.5, "50.0 %"),
        (0.9994, "99.9 %"),
        (0.999999, "> 99.9 %"),
        (1.0, "> 99.9 %"),
    ],
)
def test_a_share_is_never_rounded_to_a_certainty(share: float, text: str) -> None:
    assert percent(share) == text
