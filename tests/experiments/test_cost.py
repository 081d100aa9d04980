"""What an experiment costs, and the sizes that are chosen from it."""

from pathlib import Path

import pytest

import pellucid as pl
from pellucid.data.sources import Sample, Source
from pellucid.experiments import cost, inputs
from pellucid.experiments.cost import Cost, image_cost, sized
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import Results
from pellucid.passes import counting


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    inputs.forget()


def spec(**changes):
    return read_spec(
        options={
            "models": ["shapes-resnet"],
            "images": {"source": "shapes:6"},
            "methods": ["random", "gradient", "smoothed(gradient, samples=5)"],
            "layers": ["input"],
            "metrics": ["total_variation", "insertion(steps=4)"],
            "pictures": 0,
            **changes,
        }
    )


def test_the_passes_of_one_image_are_those_of_the_methods_and_metrics():
    """Insertion has 5 levels, of which the clean image's score is known; the last gradient has 5 draws."""
    found = image_cost(spec())
    insertion = found.passes["shapes-resnet", "random"]
    assert insertion >= 4
    assert found.passes["shapes-resnet", "gradient"] >= insertion + 1
    assert found.passes["shapes-resnet", "smoothed(gradient, samples=5)"] >= insertion + 5
    assert min(found.seconds.values()) > 0


def test_a_run_makes_about_the_passes_that_were_told(tmp_path):
    asked = spec(variants=["original", "backward"])
    found = sized(asked, tmp_path / "run")
    assert found.images == 6
    with counting() as rows:
        benchmark(found.spec, tmp_path / "run")
    assert sum(rows) == pytest.approx(found.passes, rel=0.25)


def test_cells_and_quick_looks_are_sized_by_the_seconds_of_an_image(tmp_path, monkeypatch):
    def costing(seconds):
        monkeypatch.setattr(cost, "image_cost", lambda spec: Cost({("a", "b"): 10}, {("a", "b"): seconds}))

    costing(50.0)
    assert sized(spec(), tmp_path).spec.images_per_cell == 2
    assert sized(spec(images_per_cell=5), tmp_path).spec.images_per_cell == 5
    quick = sized(spec(), tmp_path, is_quick=True)
    assert (quick.spec.images.count, quick.spec.images.spread, quick.images) == (6, True, 6)
    assert quick.passes == 60
    costing(100.0)
    assert sized(spec(), tmp_path, is_quick=True).spec.images.count == 3
    costing(1e6)
    assert sized(spec(), tmp_path, is_quick=True).spec.images.count == 3
    assert sized(spec(), tmp_path).spec.images_per_cell == 1
    costing(1e-3)
    assert sized(spec(), tmp_path).spec.images_per_cell == 16


def test_a_run_that_was_begun_keeps_its_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "image_cost", lambda spec: Cost({("a", "b"): 10}, {("a", "b"): 70.0}))
    begun = sized(spec(), tmp_path / "run", is_quick=True).spec
    assert (begun.images.count, begun.images_per_cell) == (4, 1)
    benchmark(begun, tmp_path / "run")
    for part in list((tmp_path / "run" / "parts").iterdir())[:2]:
        part.unlink()
    monkeypatch.setattr(cost, "image_cost", lambda spec: Cost({("a", "b"): 10}, {("a", "b"): 1e-3}))
    again = sized(spec(), tmp_path / "run", is_quick=True).spec
    assert again == begun
    assert len(Results.read(tmp_path / "run").missing) == 2
    assert not benchmark(again, tmp_path / "run").missing


def test_a_run_that_is_given_more_costs_what_it_lacks(tmp_path, monkeypatch):
    """Of 8 pairs of a method and a variant 3 are there; a run of other settings is not measured at all."""
    methods = list(spec().methods)
    benchmark(spec(images_per_cell=6), tmp_path / "run")
    asked = spec(methods=[*methods, "edges"], variants=["original", "backward"], images_per_cell=6)
    keys = [("shapes-resnet", method) for method in (*methods, "edges")]
    found = dict.fromkeys(keys, 10), dict.fromkeys(keys, 1.0)
    monkeypatch.setattr(cost, "image_cost", lambda spec: Cost(*found))
    grown = sized(asked, tmp_path / "run")
    assert (grown.grows, grown.passes, grown.seconds) == (True, 6 * 5 * 10, 6 * 5 * 1.0)
    other = sized(spec(seed=1), tmp_path / "run")
    assert (other.grows, other.passes) == (False, 0)


def test_what_is_wrong_is_left_for_the_benchmark_to_tell(tmp_path):
    broken = spec(models=["no-such-network"])
    assert sized(broken, tmp_path).spec == broken
    with pytest.raises(pl.PellucidError, match="no-such-network"):
        benchmark(broken, tmp_path / "run")


def test_spread_images_are_of_all_stretches_and_others_follow():
    for length, count in [(100, 7), (5, 5), (5, 9), (40, 1)]:
        order = inputs.spread_first(length, count)
        assert sorted(order) == list(range(length))
        first = order[: min(count, length)]
        assert first == sorted(first)
        ends = [(number + 1) * length // len(first) for number in range(len(first))]
        assert all(low <= place < end for low, place, end in zip([0, *ends], first, ends, strict=False))


def test_spread_images_of_a_folder_are_of_many_classes(tmp_path, monkeypatch):
    names = [f"{name}/{number}.png" for name in "abcdefgh" for number in range(25)]
    monkeypatch.setattr(
        inputs, "open_images", lambda *settings: Source(names, lambda index: Sample(names[index], None))
    )
    images = spec(images={"source": "x", "count": 8, "spread": True}).images
    assert [name[0] for name in inputs.chosen(images).names] == list("abcdefgh")
    skipped = images.model_copy(update={"skip": (inputs.chosen(images).names[3],)})
    assert set(inputs.chosen(images).names[:3]) < set(inputs.chosen(skipped).names)
    plain = images.model_copy(update={"spread": False})
    assert {name[0] for name in inputs.chosen(plain).names} == {"a"}
    assert Path(names[0]).suffix == ".png"
