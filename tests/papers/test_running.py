"""A recipe from its sources to its results: what is found, trained, computed, and never done twice."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
import torch
from filelock import FileLock

from pellucid.data.sources import open_images
from pellucid.errors import InvalidData, InvalidParameter, OutputNotWritable, UnknownName
from pellucid.experiments import runners
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import Results
from pellucid.findings.statistics import Statistics
from pellucid.folders import content
from pellucid.models.zoo import load_model
from pellucid.papers.recipe import Recipe
from pellucid.papers.running import reproduce
from pellucid.papers.sources import filled, located, needed
from pellucid.training import from_source
from pellucid.variants.surrogate import load_surrogate

TABLE = {"kind": "table", "title": "a table", "rows": "method", "columns": "variant"}
NETWORK = {"name": "selu-cnn", "source": "@digits", "test": "@others", "count": 64, "epochs": 2}
DIGITS = {
    "models": [{"name": "selu-cnn", "weights": "@cnn", "alias": "CNN"}],
    "images": {"source": "@others", "count": 4},
    "methods": ["gradient", "random"],
    "layers": ["input"],
    "metrics": ["total_variation"],
    "pictures": 1,
}
SHAPES = {
    "models": ["shapes-resnet"],
    "images": "@shapes",
    "methods": ["gradient"],
    "variants": ["original", "@paths"],
    "layers": ["input"],
    "metrics": ["total_variation"],
}
WHOLE = {
    "title": "A paper",
    "authors": "its authors",
    "lead": "What it says.",
    "sources": {
        "digits": {"path": "mnist/train.parquet", "about": "labelled digits to learn"},
        "others": {"path": "mnist/test.parquet", "about": "labelled digits to explain"},
        "shapes": {"path": "shapes", "otherwise": "shapes:4", "about": "shapes"},
    },
    "weights": {"named": {"path": "net.safetensors.gz", "otherwise": "DEFAULT", "about": "a network"}},
    "networks": [{"key": "cnn", "spec": NETWORK, "cpu": {"epochs": 3}}],
    "surrogates": [
        {
            "key": "paths",
            "spec": {"model": "shapes-resnet", "source": "@shapes", "epochs": 2, "batch_size": 4, "count": 4},
        }
    ],
    "experiments": [
        {"key": "digits", "spec": DIGITS, "cpu": {"images": {"count": 6}}},
        {"key": "shapes", "spec": SHAPES},
    ],
    "exhibits": [
        TABLE | {"key": "table1", "experiment": "digits"},
        TABLE | {"key": "table2", "experiment": "shapes"},
    ],
    "claims": [
        {
            "text": "the gradient is smoother than noise",
            "place": "Section 1",
            "tests": [
                {
                    "experiment": "digits",
                    "method": "gradient",
                    "how": "difference",
                    "against": {"method": "random"},
                    "below": 0,
                }
            ],
        }
    ],
}


def given(digits):
    """Where the sources are."""
    return [str(digits), "shapes=shapes:4"]


def recipe(**parts):
    return Recipe.model_validate(WHOLE | parts)


@pytest.fixture(scope="module")
def digits(real_data, tmp_path_factory):
    """The first digits of MNIST, as a folder of --data."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist").mkdir()
    for name, count in (("train", 96), ("test", 32)):
        table = pyarrow.parquet.read_table(real_data / "data" / "mnist" / f"{name}.parquet").slice(0, count)
        pyarrow.parquet.write_table(table, folder / "mnist" / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def ran(digits, tmp_path_factory):
    """A finished run at scale smoke, and the steps that it took."""
    torch.set_num_threads(1)
    folder, steps = tmp_path_factory.mktemp("run") / "out", []
    run = reproduce(
        recipe(), "smoke", folder, given(digits), advance=lambda *step: steps.append(step), command="typed"
    )
    return folder, run, steps


@pytest.fixture
def copied(ran, tmp_path):
    """A copy of the finished run, to go on with."""
    return Path(shutil.copytree(ran[0], tmp_path / "copy"))


def proceed(folder, digits, changed=None, **options):
    """Run again, and count the networks trained, the surrogates trained and the cells computed."""
    counts = {}

    def advance(step, what, done, total):
        first, _ = counts.setdefault((step, what.partition(" ")[0]), (done, done))
        counts[step, what.partition(" ")[0]] = first, done

    run = reproduce(
        changed or recipe(),
        options.pop("scale", "smoke"),
        folder,
        [*given(digits), *options.pop("data", ())],
        advance=advance,
        **options,
    )
    steps = {step for (step, what), (first, last) in counts.items() if what != "grading" or last > first}
    return run, steps


# What is run.


def test_a_run_is_the_trainings_and_benchmarks_that_the_recipe_names(ran, digits):
    folder, run, _ = ran
    assert sorted(path.name for path in (folder / "trained").iterdir()) == [
        "cnn.json", "cnn.safetensors", "paths.safetensors",
    ]  # fmt: skip
    spec = read_spec(
        None,
        DIGITS
        | {"models": [{"name": "selu-cnn", "weights": str(folder / "trained/cnn.safetensors"), "alias": "CNN"}]}
        | {"images": {"source": str(digits / "mnist/test.parquet"), "count": 4}},
    )
    alone = runners.benchmark(spec, folder.parent / "alone")
    pd.testing.assert_frame_equal(run.results["digits"].table, alone.table, check_exact=True)
    stored = Results.read(folder / "runs" / "digits")
    pd.testing.assert_frame_equal(stored.table, alone.table, check_exact=True)
    assert stored.record.command == "typed"
    pd.testing.assert_frame_equal(run.statistics["digits"].values, Statistics.of(alone).values, check_exact=True)
    variants = run.results["shapes"].table["variant"].unique()
    assert len(variants) == 2


def test_what_was_trained_is_told_from_its_files(ran, digits):
    folder, run, _ = ran
    cnn, paths = run.trained["cnn"], run.trained["paths"]
    assert (cnn.kind, cnn.model, cnn.epochs, cnn.images) == ("network", "selu-cnn", 2, 64)
    loaded = load_model("selu-cnn", folder / "trained" / "cnn.safetensors")
    source = open_images(digits / "mnist" / "test.parquet")
    rows = [(loaded.preprocess(sample.image), sample.label) for sample in source]
    right = [int(loaded.model(pixels[None]).argmax()) == label for pixels, label in rows]
    assert (cnn.accuracy, cnn.held_out) == (sum(right) / 32, 32)
    surrogate = load_surrogate(folder / "trained" / "paths.safetensors")
    assert (paths.kind, paths.epochs, paths.images) == ("surrogate", 2, 4)
    assert paths.loss == sum(surrogate.facts["losses"][-1])
    assert run.places == {
        "digits": str(digits / "mnist/train.parquet"),
        "others": str(digits / "mnist/test.parquet"),
        "shapes": "shapes:4",
    }


def test_steps_are_told_as_they_proceed(ran):
    _, run, steps = ran
    assert list(dict.fromkeys(step for step, *_ in steps)) == [
        "network cnn", "surrogate paths", "experiment digits", "experiment shapes",
    ]  # fmt: skip
    assert steps[-1] == ("experiment shapes", "grading", 2, 2)
    state = json.loads((ran[0] / "reproduce.json").read_text())
    assert run.seconds == pytest.approx(sum(state["seconds"].values()))
    assert state["seconds"].keys() == {step for step, *_ in steps}


def test_a_scale_replaces_values(digits, tmp_path):
    run, _ = proceed(tmp_path / "run", digits, recipe().only(("table1",)), scale="cpu")
    assert run.trained["cnn"].epochs == 3
    assert len(run.results["digits"].record.images) == 6


def test_only_what_the_chosen_exhibits_need_is_found_trained_and_run(tmp_path):
    # The digits are nowhere, and nobody asks for them.
    run = reproduce(recipe().only(("table2",)), "smoke", tmp_path / "run")
    assert run.results.keys() == {"shapes"}
    assert run.trained.keys() == {"paths"}
    assert run.recipe.claims == ()


# What is not done twice.


def test_a_finished_run_computes_nothing_again(copied, ran, digits):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.parquet")}
    run, steps = proceed(copied, digits)
    assert steps == set()
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.parquet")} == before
    assert run.seconds == ran[1].seconds
    pd.testing.assert_frame_equal(run.results["digits"].table, ran[1].results["digits"].table, check_exact=True)
    assert run.trained == ran[1].trained


def test_a_run_that_is_gone_is_the_only_one_computed_again(copied, ran, digits):
    shutil.rmtree(copied / "runs" / "digits")
    run, steps = proceed(copied, digits)
    assert steps == {"experiment digits"}
    pd.testing.assert_frame_equal(run.results["digits"].table, ran[1].results["digits"].table, check_exact=True)


def test_a_network_that_is_gone_is_trained_again_to_the_same_weights(copied, ran, digits):
    (copied / "trained" / "cnn.safetensors").unlink()
    run, steps = proceed(copied, digits)
    assert steps == {"network cnn"}
    assert content(str(copied / "trained/cnn.safetensors")) == content(str(ran[0] / "trained/cnn.safetensors"))
    pd.testing.assert_frame_equal(run.results["digits"].table, ran[1].results["digits"].table, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["network cnn", "surrogate paths", "experiment shapes"])
def test_a_run_that_was_killed_goes_on_to_the_same_results(ran, digits, tmp_path, step):
    def kill(found, what, done, total):
        # In the last epoch, or before the last cell.
        if found == step and "reading" not in what and done == total - (step == "experiment shapes"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(recipe(), "smoke", tmp_path / "run", given(digits), advance=kill)
    seen = []
    run = reproduce(
        recipe(), "smoke", tmp_path / "run", given(digits), advance=lambda *found: seen.append(found)
    )  # fmt: skip
    for key, results in ran[1].results.items():
        pd.testing.assert_frame_equal(run.results[key].table, results.table, check_exact=True)
    [first, *_] = [done for found, what, done, _ in seen if found == step and "reading" not in what]
    assert first > (0 if step == "experiment shapes" else 1)  # it went on, from an epoch or a cell


def test_the_same_images_elsewhere_are_the_same(copied, digits, tmp_path):
    moved = Path(shutil.copytree(digits, tmp_path / "elsewhere"))
    _, steps = proceed(copied, moved)
    assert steps == set()


def test_other_settings_train_again_and_say_why(copied, digits):
    changed = recipe(networks=[{"key": "cnn", "spec": NETWORK | {"epochs": 1}}]).only(("table1",))
    shutil.rmtree(copied / "runs")
    run, steps = proceed(copied, digits, changed)
    assert steps == {"network cnn again (epochs is 2 there and 1 here)", "experiment digits"}
    assert run.trained["cnn"].epochs == 1
    assert proceed(copied, digits, changed)[1] == set()


def test_other_images_train_again_even_in_place_of_a_training_that_was_stopped(digits, tmp_path):
    def kill(step, what, done, total):
        if "reading" not in what and done == total:
            raise KeyboardInterrupt

    only = recipe().only(("table1",))
    with pytest.raises(KeyboardInterrupt):
        reproduce(only, "smoke", tmp_path / "run", given(digits), advance=kill)
    assert list((tmp_path / "run/trained/cnn.checkpoint").iterdir())
    other = f"digits={digits / 'mnist' / 'test.parquet'}"
    run, steps = proceed(tmp_path / "run", digits, only, data=[other])
    assert any(step.startswith("network cnn again (source is 'sha256 ") for step in steps)
    assert run.trained["cnn"].images == 32


def test_a_network_trained_anew_is_refused_beside_results_of_the_old(copied, digits):
    changed = recipe(networks=[{"key": "cnn", "spec": NETWORK | {"epochs": 1}}])
    with pytest.raises(OutputNotWritable, match=r"^experiment digits: .*runs/digits holds the results of another"):
        proceed(copied, digits, changed)


def test_cells_that_fail_do_not_end_the_others(digits, tmp_path, monkeypatch):
    from pellucid.errors import InvalidModel

    whole = runners.run_cell

    def run_cell(spec, cell):
        if cell.method == "random":
            raise InvalidModel("no such luck")
        return whole(spec, cell)

    monkeypatch.setattr(runners, "run_cell", run_cell)
    run, _ = proceed(tmp_path / "run", digits)
    assert list(run.results["digits"].failed.values()) == ["no such luck"]
    assert run.results["shapes"].failed == {}
    assert run.statistics.keys() == {"digits", "shapes"}
    monkeypatch.undo()
    _, steps = proceed(tmp_path / "run", digits)
    assert steps == {"experiment digits"}


def test_an_experiment_without_any_result_has_no_statistics(tmp_path, monkeypatch):
    from pellucid.errors import InvalidModel

    def run_cell(spec, cell):
        raise InvalidModel("no such luck")

    monkeypatch.setattr(runners, "run_cell", run_cell)
    run = reproduce(recipe().only(("table2",)), "smoke", tmp_path / "run")
    assert len(run.results["shapes"].failed) == 2
    assert run.statistics == {}


# Where things are.


def test_what_is_needed_is_followed_through_trainings():
    assert needed(recipe(), "smoke") == {"cnn", "digits", "others", "shapes", "paths"}
    assert needed(recipe().only(("table1",)), "smoke") == {"cnn", "digits", "others"}
    chained = recipe(
        surrogates=[{"key": "paths", "spec": {"model": "selu-cnn", "weights": "@cnn", "source": "@shapes"}}]
    ).only(("table2",))
    assert needed(chained, "smoke") == {"paths", "cnn", "digits", "others", "shapes"}


def test_sources_are_found_in_folders_in_order_or_where_they_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("one/mnist/train.parquet", "two/mnist/train.parquet", "two/mnist/test.parquet", "two/shapes"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).touch()
    found = located(recipe(), {"digits", "others", "shapes", "cnn"}, ["one", "two", "others=one"], [])
    assert found == {
        "digits": f"{tmp_path}/one/mnist/train.parquet",
        "others": f"{tmp_path}/one",
        "shapes": f"{tmp_path}/two/shapes",
    }
    assert located(recipe(), {"shapes"}, [], []) == {"shapes": "shapes:4"}
    assert located(recipe(), {"shapes"}, ["shapes=hf:mnist"], []) == {"shapes": "hf:mnist"}


def test_weights_are_found_zipped_or_not_or_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located(recipe(), {"named"}, [], []) == {"named": "DEFAULT"}
    assert located(recipe(), {"named"}, [], ["named=IMAGENET1K_V1"]) == {"named": "IMAGENET1K_V1"}
    Path("net.safetensors").touch()
    assert located(recipe(), {"named"}, [], ["."]) == {"named": f"{tmp_path}/net.safetensors"}
    Path("net.safetensors.gz").touch()
    assert located(recipe(), {"named"}, [], ["."]) == {"named": f"{tmp_path}/net.safetensors.gz"}
    assert located(recipe(), {"named"}, [], ["named=net.safetensors"]) == {"named": f"{tmp_path}/net.safetensors"}


@pytest.mark.parametrize(
    ("data", "weights", "error", "message"),
    [
        ([], [], InvalidData, r"--data is needed for digits \(labelled digits to learn\): give --data FOLDER, a "
         r"folder with mnist/train.parquet in it, or --data digits=PLACE"),
        (["."], [], InvalidData, r"digits \(labelled digits to learn\) is not there: no mnist/train.parquet; "
         "put it there, or give --data digits=PLACE$"),
        (["nowhere"], [], InvalidData, "--data nowhere is no folder; give one, or NAME=..., NAME being digits or"),
        (["digit=."], [], UnknownName, "'digit'; did you mean digits"),
        (["digits=nowhere"], [], InvalidData, "--data digits=nowhere: there is no nowhere; give a path that"),
        (["digits=.", "others=.", "."], [], InvalidData, r"no shapes; .* --data shapes=PLACE, such as shapes:4"),
        (["digits=.", "others=.", "shapes=shapes"], ["named=gone.pth"], InvalidData,
         "--weights named=gone.pth: there is no gone.pth"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_the_way_out(tmp_path, monkeypatch, data, weights, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        reproduce(recipe(), "smoke", Path("run"), data, weights)
    assert list(tmp_path.iterdir()) == []


def test_keys_are_filled_in_wherever_they_stand():
    value = {"a": "@x", "b": ["@y", {"c": ("@x", 1)}], "d": "x@x"}
    assert filled(value, {"x": "1", "y": "2"}) == {"a": "1", "b": ["2", {"c": ["1", 1]}], "d": "x@x"}


def test_content_is_known_by_what_is_there_not_where(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "file").write_text("same")
    assert content(str(tmp_path / "one")) == content(str(tmp_path / "two"))
    assert content(str(tmp_path / "one/in/file")) == content(str(tmp_path / "two/in/file"))
    (tmp_path / "two/in/file").write_text("some")
    assert content(str(tmp_path / "one/in/file")) != content(str(tmp_path / "two/in/file"))
    (tmp_path / "two/in/more").touch()
    assert content(str(tmp_path / "one")) != content(str(tmp_path / "two"))
    assert content("shapes:4") == "shapes:4"


# What is refused.


@pytest.mark.parametrize(
    ("scale", "title", "message"),
    [
        ("cpu", "A paper", "holds the scale 'smoke', not 'cpu'; choose another folder"),
        ("smoke", "Another", "holds the paper 'A paper', not 'Another'; choose another folder"),
    ],
)
def test_a_folder_of_another_paper_or_scale_is_refused(copied, digits, scale, title, message):
    with pytest.raises(OutputNotWritable, match=message):
        proceed(copied, digits, recipe(title=title), scale=scale)


def test_a_folder_of_something_else_is_refused(tmp_path, digits):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(OutputNotWritable, match=r"holds letter\.txt but no reproduce\.json"):
        proceed(tmp_path, digits)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_broken_state_is_refused(tmp_path, digits):
    (tmp_path / "reproduce.json").write_text("{}")
    with pytest.raises(OutputNotWritable, match=r"reproduce\.json cannot be read; choose another folder"):
        proceed(tmp_path, digits)


def test_two_processes_do_not_write_to_one_folder(copied, digits):
    with FileLock(copied / ".lock"), pytest.raises(OutputNotWritable, match="another process is writing"):
        proceed(copied, digits)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"experiments": [{"key": "digits", "spec": DIGITS | {"metric": "x"}}]}, UnknownName,
         "^experiment digits at scale smoke: .*'metric'"),
        ({"networks": [{"key": "cnn", "spec": NETWORK | {"epoch": 1}}]}, InvalidParameter,
         "^network cnn at scale smoke: epoch: Extra inputs"),
        ({"networks": [{"key": "cnn", "spec": {"name": "selu-cnn"}}]}, InvalidParameter,
         "^network cnn at scale smoke: the settings: .*selu-cnn needs a source"),
        ({"networks": [{"key": "cnn", "spec": NETWORK | {"name": "selu-cn"}}]}, UnknownName,
         "^network cnn: unknown model 'selu-cn'; did you mean"),
    ],
)  # fmt: skip
def test_errors_name_the_part_of_the_recipe(tmp_path, digits, parts, error, message):
    parts = {"exhibits": WHOLE["exhibits"][:1]} | parts
    if "experiments" not in parts:
        parts["experiments"] = WHOLE["experiments"][:1]
    with pytest.raises(error, match=message):
        proceed(tmp_path / "run", digits, recipe(**parts))


def test_a_surrogates_training_takes_the_first_images(tmp_path):
    settings = from_source.SurrogateSettings(model="shapes-resnet", source="shapes:9", epochs=1, count=5)
    found = from_source.train_paths(settings, tmp_path / "s.safetensors", "cpu", lambda *step: None)
    assert found.facts["images"]["count"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]
