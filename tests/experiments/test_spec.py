"""A spec: from a file, from options, from both; and what is wrong with one is named with its place."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pellucid.errors import InvalidData, InvalidParameter, UnknownName
from pellucid.experiments.planning import digests_of_files
from pellucid.experiments.spec import Images, Model, Spec, read_spec, shown

EXAMPLES = Path(__file__).parents[2] / "examples"
WHOLE = """
name = "mine"
methods = ["gradient", "smoothed(gradient, samples=3)"]
variants = ["original", "backward"]
layers = ["input", "layer1.*"]
metrics = ["total_variation"]
target = 3
scored = "variant"
score = "logits"
reference = "gradient"
channels = "abs_sum"
upsampling = "bilinear"
pictures = 2
seed = 7
images_per_cell = 4
max_batch = 8
device = "cpu"

[images]
source = "shapes:12"
count = 3
every = 2
label_column = "kind"
skip = ["shape-02"]

[[models]]
name = "shapes-resnet"
"""


def written(folder, text):
    path = folder / "bench.toml"
    path.write_text(text)
    return path


def short(**changed):
    return {
        "models": ["shapes-resnet"],
        "images": {"source": "shapes:4"},
        "metrics": ["total_variation"],
    } | changed


def test_every_value_of_a_file_arrives(tmp_path):
    assert read_spec(written(tmp_path, WHOLE)) == Spec(
        name="mine",
        models=(Model(name="shapes-resnet"),),
        images=Images(source="shapes:12", count=3, every=2, label_column="kind", skip=("shape-02",)),
        methods=("gradient", "smoothed(gradient, samples=3)"),
        variants=("original", "backward"),
        layers=("input", "layer1.*"),
        metrics=("total_variation",),
        target=3,
        scored="variant",
        score="logits",
        reference="gradient",
        channels="abs_sum",
        upsampling="bilinear",
        pictures=2,
        seed=7,
        images_per_cell=4,
        max_batch=8,
        device="cpu",
    )


def test_options_alone_make_the_same_spec_as_a_file(tmp_path):
    text = 'models = ["shapes-resnet"]\nimages = "shapes:4"\nmethods = "gradient"\nmetrics = ["total_variation"]\n'
    assert read_spec(written(tmp_path, text)) == read_spec(None, short(methods=["gradient"]))


def test_options_replace_a_files_values_and_keep_the_others(tmp_path):
    changed = read_spec(
        written(tmp_path, WHOLE), {"seed": 1, "images": {"count": 5}, "methods": ["random", "gradient"]}
    )
    expected = read_spec(written(tmp_path, WHOLE)).model_dump() | {"seed": 1, "methods": ("random", "gradient")}
    expected["images"] |= {"count": 5}
    assert changed == Spec.model_validate(expected)


def test_weights_of_the_options_go_to_the_files_models_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, WHOLE + '[[models]]\nname = "resnet18"\nalias = "big"\n')
    models = read_spec(path, {"weights": ["a.pth", "random"]}).models
    assert [model.weights for model in models] == [str(tmp_path / "a.pth"), "random"]
    assert [model.key for model in models] == ["shapes-resnet", "big"]
    with pytest.raises(InvalidParameter, match="1 weights for 2 models"):
        read_spec(path, {"weights": ["a.pth"]})


def test_a_files_paths_are_relative_to_it_and_options_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "spec").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SHOTS", "photos")
    text = """
methods = ["foreign/maps.py:mine", "gradient"]
reference = "foreign/maps.py:mine"
metrics = ["total_variation"]
images = {source = "../$SHOTS", root = "~/sets"}
models = [{name = "net.py:build", weights = "net.pth"}, {name = "resnet18", weights = "DEFAULT"}]
"""
    path = written(tmp_path / "spec", text)
    spec = read_spec(path)
    assert spec.images.source == str(tmp_path / "photos")
    assert spec.images.root == str(Path.home() / "sets")
    assert spec.methods == (f"{tmp_path}/spec/foreign/maps.py:mine", "gradient")
    assert spec.method_texts == {"maps.py:mine": spec.methods[0], "gradient": "gradient"}
    assert [model.name for model in spec.models] == [f"{tmp_path}/spec/net.py:build", "resnet18"]
    assert [model.weights for model in spec.models] == [f"{tmp_path}/spec/net.pth", "DEFAULT"]
    assert [model.key for model in spec.models] == ["net.py:build", "resnet18"]
    assert shown(spec.reference) == "maps.py:mine"
    assert read_spec(path, {"images": {"source": "photos"}}).images.source == str(tmp_path / "here" / "photos")


TABLES = '[images]\nsource = "shapes:2"\n[[models]]\nname = "m"\n'


@pytest.mark.parametrize(
    ("top", "tables", "error", "message"),
    [
        ('methds = ["a"]', TABLES, UnknownName, r"key in .*bench.toml 'methds'; did you mean methods"),
        ("", f"{TABLES}weigths = 'b'", UnknownName, r"the table 'models' in .*bench.toml 'weigths'.*weights"),
        ("", "models = ['m']\n[images]\nsorce = 'x'", UnknownName, r"the table 'images' .* 'sorce'; .*source"),
        ("", f"{TABLES}methods = ['a']", InvalidParameter, "'models' has no key 'methods'; write it at the top"),
        ("count = 3", TABLES, InvalidParameter, "the top, before the first table, has no key 'count'; .*'images'"),
        ("images = 'shapes:2'", "", InvalidParameter, "models is missing"),
        ("seed = 'x'", TABLES, InvalidParameter, "seed is 'x'; input should be a valid integer"),
        ("seed = -1", TABLES, InvalidParameter, "seed is -1; input should be greater"),
        ("max_batch = true", TABLES, InvalidParameter, "max_batch is True"),
        ("score = 'share'", TABLES, InvalidParameter, "score is 'share'; input should be 'softmax'"),
        ("target = -1", TABLES, InvalidParameter, "target is -1; give"),
        ("target = 1099511627776", TABLES, InvalidParameter, "target is 1099511627776; give"),
        ("methods = " + "[" * 20_000, "", InvalidParameter, "bench.toml is no TOML"),
        ("seed = 1" + "0" * 5_000, TABLES, InvalidParameter, "bench.toml is no TOML"),
        ("methods = [", TABLES, InvalidParameter, "bench.toml is no TOML: .*line"),
        (
            "variants = '$NOWHERE_SET/x.safetensors'",
            TABLES,
            InvalidData,
            r"NOWHERE_SET/x.*an environment variable",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, top, tables, error, message):
    with pytest.raises(error, match=message):
        read_spec(written(tmp_path, f"metrics = ['m']\n{top}\n{tables}\n"))


def test_a_variable_that_is_not_set_may_be_replaced_by_an_option(tmp_path):
    path = written(tmp_path, "metrics = ['m']\nmodels = ['m']\nimages = '$NOWHERE_SET/x'\n")
    assert read_spec(path, {"images": {"source": "shapes:2"}}).images.source == "shapes:2"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidData, match=r"nowhere.toml cannot be read: No such file"):
        read_spec(tmp_path / "nowhere.toml")


def test_pipes_devices_and_folders_are_no_specs(irregular):
    with pytest.raises(InvalidData, match=r"bench.toml cannot be read: (it is no regular file|Is a directory)"):
        read_spec(irregular("bench.toml"))


def test_pipes_devices_and_folders_are_no_files_of_methods(irregular):
    place = irregular("mine.py")
    with pytest.raises(InvalidData, match=r"mine.py cannot be read: (it is no regular file|Is a directory)"):
        digests_of_files([f"{place}:explain"])


def test_a_spec_is_bounded(tmp_path, monkeypatch):
    path = written(tmp_path, "#" * 1001)
    monkeypatch.setenv("PELLUCID_MAX_TEXT", "1000")
    with pytest.raises(InvalidData, match=r"bench.toml has 1,001 bytes, and 1,000 .*PELLUCID_MAX_TEXT"):
        read_spec(path)


def test_two_models_or_methods_of_one_name_are_refused():
    with pytest.raises(InvalidParameter, match="two of models have the same name"):
        read_spec(None, short(models=["resnet18", {"name": "resnet18", "weights": "random"}]))
    with pytest.raises(InvalidParameter, match="two of methods have the same name"):
        read_spec(None, short(methods=["a/maps.py:mine", "b/maps.py:mine"]))
    both = read_spec(None, short(models=["resnet18", {"name": "resnet18", "alias": "other"}]))
    assert [model.key for model in both.models] == ["resnet18", "other"]


def test_the_reference_is_one_of_the_methods():
    with pytest.raises(InvalidParameter, match="reference 'gradcam' is none of the methods"):
        read_spec(None, short(methods=["gradient"], reference="gradcam"))


def test_what_is_named_twice_is_meant_once():
    assert read_spec(None, short(methods=["gradient", "random", "gradient"])).methods == ("gradient", "random")


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        read_spec(None, short()).seed = 3


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_specs(path, monkeypatch):
    monkeypatch.setenv("PELLUCID_DATA", "/somewhere")
    spec = read_spec(path)
    assert spec.method_texts[spec.reference]
    every = ("original", "backward", "forward")
    assert spec.variants == (every if spec.training is None else ("original",))  # the CIFAR CNN has no strides
    assert spec.layers == ("all",)


def test_environment_variables_stand_in_paths_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "a-secret")
    text = """
name = "$SECRET"
methods = ["gradient", "$SECRET", "$SECRET/maps.py:mine"]
metrics = ["total_variation"]
images = {source = "$SECRET"}
models = [{name = "$SECRET", alias = "$SECRET"}]
"""
    spec = read_spec(written(tmp_path, text))
    assert spec.images.source == str(tmp_path / "a-secret")
    assert spec.methods == ("gradient", "$SECRET", f"{tmp_path}/a-secret/maps.py:mine")
    assert (spec.name, spec.models[0].name, spec.models[0].alias) == ("$SECRET",) * 3
