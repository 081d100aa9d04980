"""Runs on a Ray cluster of two machines: the same results, whatever dies meanwhile; refusals before any work."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from pellucid.errors import (
    EmptyMapWarning,
    InvalidCluster,
    InvalidParameter,
    OutputNotWritable,
    RuleWarning,
    UnknownName,
)
from pellucid.experiments import on_ray as module
from pellucid.experiments import runners
from pellucid.experiments.bulk import read_maps, write_maps
from pellucid.experiments.on_ray import amiss, on_ray
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import MapsSpec, paths_of, read_spec, spec_of, with_absolute_paths
from pellucid.experiments.store import Results
from pellucid.passes import counting
from tests.experiments.test_trainings import data, small  # noqa: F401 - a fixture
from tests.tables import SMALL_SPEC

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

MACHINE = {"num_cpus": 1, "object_store_memory": 80 << 20}
# A machine that is gone refuses connections, and is given up after as many; one that is only slow has longer.
WATCHED = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}
# Maps that write down each call, and do what a file beside them says, once or each time.
MAPS = """
import os, signal, time, warnings
from pathlib import Path
HERE = Path(__file__).parent

def maps(model, images, targets):
    with open(HERE / "calls", "a") as file:
        file.write(f"{os.getpid()} {len(images)} {float(images[0].detach().sum()):.6f}\\n")
    late = time.monotonic() + 120
    while (HERE / "together").exists() and time.monotonic() < late:
        if len({line.split()[0] for line in (HERE / "calls").read_text().splitlines()}) == 2:
            break
        time.sleep(0.05)
    if (HERE / "slow").exists():
        time.sleep(0.4)
    try:
        (HERE / "fatal").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    except FileNotFoundError:
        pass
    warnings.warn("as the method says", RuntimeWarning)
    return images.detach() ** 2

def deadly(model, images, targets):
    open(HERE / "deaths", "a").write("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_worker_niceness", "0")  # else they wait for every other test
        head = MACHINE | {"include_dashboard": False, "_system_config": WATCHED}
        found = Cluster(initialize_head=True, head_node_args=head)
        found.add_node(**MACHINE)
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def connected(cluster):
    """One connection for many runs, whose workers stay."""
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    yield on_ray()
    ray.shutdown()


@pytest.fixture
def maps(tmp_path):
    (tmp_path / "maps.py").write_text(MAPS)
    return tmp_path / "maps.py"


def spec(maps, methods=("maps", "gradient"), count=6, **changed):
    methods = [f"{maps}:{name}" if name in MAPS else name for name in methods]
    return read_spec(None, SMALL_SPEC | {"methods": methods, "images": f"shapes:{count}"} | changed)


@pytest.fixture
def whole(maps):
    """What an undisturbed run gives, and its passes."""
    with counting() as rows, pytest.warns(RuntimeWarning, match="as the method says"):
        found = benchmark(spec(maps), maps.parent / "whole")
    (maps.parent / "calls").unlink()
    return found, sum(rows)


def assert_same(found, whole):
    pd.testing.assert_frame_equal(found.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(found.pictures, whole.pictures, check_exact=True)
    assert (found.missing, found.failed) == ([], {})


def calls(maps):
    return (maps.parent / "calls").read_text().splitlines()


def test_results_passes_and_warnings_are_those_of_one_process(cluster, maps, whole):
    was_connected = ray.is_initialized()
    (maps.parent / "together").touch()  # the first call of one machine waits for one of the other
    with counting() as rows, pytest.warns(RuntimeWarning, match="as the method says"):
        found = benchmark(spec(maps), maps.parent / "run", runner=on_ray(cluster.address))
    assert_same(found, whole[0])
    planned = 1  # a pass that the plan itself makes of the network
    assert sum(rows) >= whole[1] - planned
    assert len({line.split()[0] for line in calls(maps)} - {str(os.getpid())}) == 2  # both machines worked
    assert ray.is_initialized() == was_connected


@pytest.mark.filterwarnings("ignore:as the method says")
def test_a_worker_killed_within_a_cell_changes_nothing(connected, maps, whole):
    (maps.parent / "fatal").touch()
    assert_same(benchmark(spec(maps), maps.parent / "run", runner=connected), whole[0])
    assert len(calls(maps)) == 6 + 1


@pytest.mark.filterwarnings("ignore:as the method says")
def test_a_cell_that_kills_its_workers_is_told_and_the_others_are_finished(connected, maps, monkeypatch):
    monkeypatch.setattr(module, "_TRIES", 2)
    found = benchmark(spec(maps, ["deadly", "gradient"], 1), maps.parent / "run", runner=connected)
    [(cell, message)] = found.failed.items()
    assert "deadly" in cell
    assert message.startswith("its worker died each of 2 times")
    assert "\n" not in message
    assert (maps.parent / "deaths").read_text() == "x" * 2
    assert len(found.missing) == 1


@pytest.mark.filterwarnings("ignore:as the method says")
def test_a_machine_that_goes_down_changes_nothing(cluster, connected, maps, whole):
    third, removed = cluster.add_node(**MACHINE), []
    (maps.parent / "slow").touch()

    def advance(done, total):
        if done == 3 and not removed:
            cluster.remove_node(third, allow_graceful=False)
            removed.append(done)

    found = benchmark(spec(maps), maps.parent / "run", runner=connected, advance=advance)
    assert removed
    assert_same(found, whole[0])


@pytest.mark.filterwarnings("ignore:as the method says")
def test_a_driver_that_is_stopped_or_killed_goes_on_where_it_was(cluster, connected, maps, whole):
    (maps.parent / "slow").touch()
    run, source = maps.parent / "run", Path(module.__file__).parents[2]
    command = [
        *(sys.executable, "-m", "pellucid", "benchmark", "--model", "shapes-resnet", "--images", "shapes:6"),
        *("--methods", f"{maps}:maps,gradient", "--metrics", "total_variation", "--images-per-cell", "1"),
        *("--pictures", "1", "--runner", "ray", "--address", cluster.address, "-o", str(run)),
    ]
    before = {}
    for least, number in ((1, signal.SIGINT), (4, signal.SIGKILL)):
        environment = os.environ | {"PYTHONPATH": str(source)}
        driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(list(run.glob("parts/*.parquet"))) < least and time.monotonic() < deadline:
            time.sleep(0.01)
        driver.send_signal(number)
        told = driver.communicate()[1].decode()
        # Ray itself may abort where an interrupt meets a task that has just ended; then, too, nothing may be lost.
        aborted = driver.returncode == -signal.SIGABRT and "task_manager.cc" in told
        assert aborted or driver.returncode == (130 if number == signal.SIGINT else -number), told
        now = {path: path.stat().st_mtime_ns for path in run.glob("parts/*.parquet")}
        assert least <= len(now) < 12
        assert before.items() <= now.items()
        before = now
    found = benchmark(spec(maps), run, runner=connected)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in run.glob("parts/*.parquet")}.items()
    assert_same(found, whole[0])


def test_trainings_share_their_files(connected, data, tmp_path):  # noqa: F811
    alone = benchmark(small(data), tmp_path / "alone")
    found = benchmark(small(data), tmp_path / "run", runner=connected)
    pd.testing.assert_frame_equal(found.table, alone.table, check_exact=True)
    files = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone/training").rglob("*"))
    assert files == sorted(path.relative_to(tmp_path / "run") for path in (tmp_path / "run/training").rglob("*"))


@pytest.fixture
def objects(monkeypatch):
    """A store of objects, as S3."""
    pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}).items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("results")
    yield "s3://results"
    server.stop()


@pytest.mark.filterwarnings("ignore:as the method says")
def test_results_go_to_a_store_of_objects(connected, maps, whole, objects):
    found = benchmark(spec(maps), f"{objects}/run", runner=connected)
    assert_same(found, whole[0])
    assert_same(Results.read(f"{objects}/run"), whole[0])


def test_maps_of_many_images_are_those_of_one_process(connected, tmp_path):
    wanted = {"models": ["shapes-resnet"], "images": "shapes:10", "methods": ["gradient"], "layers": ["layer1.0"]}
    asked = spec_of(MapsSpec, None, wanted | {"images_per_cell": 3})
    write_maps(asked, tmp_path / "alone")
    run = write_maps(asked, tmp_path / "run", runner=connected)
    assert (run.images, run.maps, len(run.shards), run.failed) == (10, 10, 4, {})
    pd.testing.assert_frame_equal(read_maps(tmp_path / "run"), read_maps(tmp_path / "alone"), check_exact=True)
    assert [path.name for path in tmp_path.glob("run/.seen*")] == []


# Refusals, before any cell is computed.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torch-0.1.dist-info/METADATA", "Name: torch\nVersion: 0.1\n", "has other versions: .*torch is .*'0.1'"),
        ("pellucid.py", "", "cannot import pellucid"),
    ],
    ids=["torch", "pellucid"],
)
def test_a_machine_with_other_packages_is_refused(cluster, connected, maps, name, content, message):
    file = maps.parent / "other" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    path = os.pathsep.join([str(maps.parent / "other"), str(Path(module.__file__).parents[2])])
    third = cluster.add_node(**MACHINE, env_vars={"PYTHONPATH": path})
    try:
        with pytest.raises(InvalidCluster, match=f"the Ray worker at .* {message}.*; install there what is"):
            benchmark(spec(maps), maps.parent / "run", runner=connected)
    finally:
        cluster.remove_node(third)
    assert not (maps.parent / "calls").exists()


def test_another_cluster_than_the_connected_one_is_refused(connected, maps):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(InvalidCluster, match=f"Ray is connected to .*, not {address}; call ray.shutdown"):
            benchmark(spec(maps), maps.parent / "run", runner=on_ray(address))


def test_what_no_machine_has_is_refused(connected, maps):
    with pytest.raises(InvalidCluster, match="no machine of the Ray cluster has the 9 processors"):
        benchmark(spec(maps), maps.parent / "run", runner=on_ray(cpus=9))


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "127.0.0.1:1",
            InvalidCluster,
            r"no Ray cluster answers at 127.0.0.1:1 \(Connection refused\); start",
        ),
        ("nowhere.invalid:6379", InvalidCluster, "no Ray cluster answers at nowhere.invalid:6379"),
        ("head", InvalidParameter, "--address head: write it as HOST:PORT"),
    ],
)
def test_an_address_that_does_not_answer_is_told_in_one_line(maps, address, error, message):
    with pytest.raises(error, match=message) as raised:
        benchmark(spec(maps), maps.parent / "run", runner=on_ray(address))
    assert "\n" not in str(raised.value)


def told(maps, **changed):
    files = {str(path): module._content(path) for path in paths_of(with_absolute_paths(spec(maps)))}
    return {"versions": module._own_versions(), "files": files, "folders": [], "mark": "mark"} | changed


def test_a_worker_says_what_it_lacks(maps, tmp_path):
    assert list(told(maps)["files"]) == [str(maps)]
    assert amiss(told(maps)) == ""
    before = told(maps)
    maps.write_text(MAPS + "\n")
    assert amiss(before) == f"has another content of {maps}; put it on a disk that all machines share"
    maps.unlink()
    assert amiss(before).startswith(f"does not see {maps}; put it")
    assert amiss(before | {"versions": {"pellucid": "0"}}).startswith(
        "has other versions: version.pellucid is '0'"
    )
    shared = before | {"files": {}, "folders": [str(tmp_path)]}
    assert amiss(shared).startswith(f"does not see {tmp_path}, where cells keep files; choose an output on")
    (tmp_path / "mark").touch()
    assert amiss(shared) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


def test_a_folder_that_cannot_be_written_is_told_of_a_worker(tmp_path, monkeypatch):
    def full(self, name, content):
        raise OutputNotWritable("cannot write to it: no room")

    (tmp_path / "mark").touch()
    monkeypatch.setattr(module.Folder, "write", full)
    assert module._unwritable(str(tmp_path), "mark").startswith(
        f"cannot use {tmp_path}, where cells keep files: cannot"
    )


def test_errors_reach_another_process_as_they_are():
    error = UnknownName("layer", "layer9", ["layer1"])
    error.add_note("while measuring insertion")
    for one in (error, OutputNotWritable("no room"), InvalidCluster("gone")):
        again = pickle.loads(pickle.dumps(one))
        assert type(again) is type(one)
        assert str(again) == str(one)
        assert getattr(again, "__notes__", []) == getattr(one, "__notes__", [])


def test_a_spec_is_the_same_in_any_folder(maps, monkeypatch):
    monkeypatch.chdir(maps.parent)
    relative = spec(Path("maps.py"), ["gradient"]).model_copy(update={"methods": ("maps.py:maps",)})
    assert with_absolute_paths(relative).methods == (f"{maps}:maps",)
    assert runners.plan(with_absolute_paths(relative)).record.hash == runners.plan(relative).record.hash


def test_kinds_of_warnings_that_only_a_users_file_knows_are_carried_as_plain_ones():
    own = type("Own", (RuntimeWarning,), {"__module__": "pellucid_user_maps"})
    assert module._known(own) is UserWarning
    assert module._known(EmptyMapWarning) is UserWarning  # it takes a layer, too
    assert module._known(RuntimeWarning) is RuntimeWarning
    assert module._known(RuleWarning) is RuleWarning


def test_a_machine_that_went_while_it_was_asked_is_no_obstacle(connected):
    node = next(one for one in ray.nodes() if one["Alive"])
    failed = ray.remote(max_retries=0)(lambda: os.kill(os.getpid(), signal.SIGKILL)).remote()
    asking = module._Cluster(ray, 1, 0)
    assert "cannot start a worker" in asking._answer(failed, node)
    assert asking._answer(failed, node | {"NodeID": "gone"}) == ""
