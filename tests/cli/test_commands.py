"""The other commands: lists, training, the demonstration, help and version."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import pellucid as pl
from pellucid.cli import app
from pellucid.cli.demo import _GRADED
from pellucid.models.zoo import load_model


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command(*arguments, cwd):
    program = "from pellucid.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_does_not_wait_for_torch(tmp_path):
    program = "import sys, pellucid.cli; print({'torch', 'matplotlib', 'pandas'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True)
    assert result.stdout.split() == [b"set()"]


def test_version():
    assert re.fullmatch(r"pellucid \d+\.\d+\.\d+\n", run("--version").stdout)


def commands(group, path=()):
    """Every command's name, as words."""
    yield path
    for name, inner in getattr(group, "commands", {}).items():
        yield from commands(inner, (*path, name))


@pytest.mark.parametrize("name", list(commands(get_command(app))), ids=" ".join)
def test_help_is_whole_at_80_columns(name):
    result = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout  # where words are cut off


def test_all_methods_are_listed_with_their_sources():
    text = CliRunner().invoke(app, ["list", "methods"], env={"COLUMNS": "80"}).stdout
    for name, entry in pl.METHODS.items():
        assert name in text
        assert entry.source in text


def test_models_layers_and_variants_are_listed():
    assert "shapes-resnet" in run("list", "models").stdout
    assert "layer2.1" in run("list", "layers", "--model", "shapes-resnet").stdout
    for name in pl.VARIANTS:
        assert name in run("list", "variants").stdout
    assert "did you mean" in run("list", "layers", "--model", "shapes-resnt").stderr


def test_training_writes_weights_that_load(tmp_path):
    result = run("train", "shapes", "--epochs", 1, "--count", 32, "-o", tmp_path / "mine.safetensors")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout
    assert load_model("shapes-resnet", tmp_path / "mine.safetensors").classes[0] == "circle"


def test_a_training_is_the_same_by_whichever_path_its_images_are_named(tmp_path, monkeypatch):
    photo = Image.new("RGB", (32, 32))
    for name in (f"photos/{label}/{number}.png" for label in "ab" for number in range(20)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    command = ("train", "cifar-cnn", "--shuffle", "--epochs", 1, "-o", tmp_path / "net.safetensors", "--data")
    assert run(*command, "photos").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = run(*command, "../photos")
    assert (again.exit_code, "was finished already" in again.stdout) == (0, True), again.stderr
    other = run(*command, "../photos", "--seed", 1)
    assert "other settings: seed is 0 there and 1 here" in " ".join(other.stderr.split())


def test_training_on_the_folder_of_one_class_names_the_folder_above(tmp_path):
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    for number in range(20):
        Image.new("RGB", (32, 32)).save(folder / f"{number}.png")
    told = run("train", "cifar-cnn", "--data", folder, "-o", tmp_path / "net.safetensors").stderr
    way_out = f"has no label; if a is its class, name the folder above, {folder.parent}"
    assert way_out in " ".join(told.split())


@pytest.mark.parametrize("place", ["mine.pth", "nowhere/mine.safetensors"])
def test_training_refuses_an_output_it_cannot_write_before_it_starts(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    result = run("train", "shapes", "-o", place)
    assert result.exit_code == 2
    assert place in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demonstration_is_one_page(tmp_path, monkeypatch):
    monkeypatch.setattr("pellucid.cli.demo._METHODS", ("gradient", "rectgrad(q=90)"))
    monkeypatch.setattr("pellucid.cli.demo._COUNT", 4)
    monkeypatch.setitem(_GRADED, "images", "shapes:4")
    monkeypatch.setitem(_GRADED, "methods", ("random", "gradient", "gradcam"))
    monkeypatch.setitem(_GRADED, "layers", ["layer2.1"])
    monkeypatch.setattr("pellucid.cli.demo._SHOWN", 1)
    result = run("demo", "-o", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    assert "report.html" in result.stdout
    text = (tmp_path / "demo" / "report.html").read_text()
    facts = json.loads((tmp_path / "demo" / "run.json").read_text())
    drop = facts["total_variation_drop"]["layer1.1"]
    assert drop > 0.3
    assert f"{100 * drop:.0f} % at layer1.1" in text
    # One photo: its gradient by 3 variants x 4 layers, and for each variant 2 methods x 4 layers.
    assert text.count("data:image/png;base64,") == 3 * 4 + 3 * 2 * 4
    assert not list((tmp_path / "demo").glob("*.png"))
    assert not re.search(r"https?://", text)


def test_the_program_itself_says_one_line_and_ends_with_2(tmp_path):
    result = command("explain", "nowhere.jpg", "--model", "shapes-resnet", "-o", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: there is no file or folder nowhere.jpg; give an image, a folder, a .parquet table, "
        "shapes:COUNT, torchvision:NAME or hf:NAME"
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_program_shows_how_it_is_used(tmp_path):
    result = command("--help", cwd=tmp_path)
    assert result.returncode == 0
    for name in ("explain", "list", "train", "demo"):
        assert name in result.stdout
