"""A run, a model's page, and servers of both."""

import threading
from contextlib import contextmanager

import pytest

from pellucid.data.sources import open_images
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import Spec
from pellucid.models.zoo import load_model
from pellucid.view.live import LiveView
from pellucid.view.run import RunView
from pellucid.view.server import Server

METHODS = ["random", "gradient", "gradcam"]


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    spec = {"name": "a first look", "models": "shapes-resnet", "images": "shapes:4", "methods": METHODS}
    spec |= {"variants": ["original", "forward"], "layers": ["input", "layer1.1", "layer3.1"], "pictures": 3}
    spec |= {"metrics": ["total_variation", "visual_coherence"], "images_per_cell": 2}
    folder = tmp_path_factory.mktemp("view") / "run"
    benchmark(Spec.model_validate(spec), folder)
    return folder


@pytest.fixture(scope="session")
def run_view(run):
    return RunView.open(run)


@pytest.fixture(scope="session")
def loaded():
    return load_model("shapes-resnet")


@pytest.fixture
def live(loaded):
    view = LiveView(loaded, [open_images("shapes:3")], variants=("original", "forward"))
    yield view
    view.close()


@contextmanager
def served(view, **settings):
    """Its server, on a port that is free."""
    server = Server(view, port=0, **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def nobody(doing):
    """Whoever waits for an answer and wants to hear nothing before."""
