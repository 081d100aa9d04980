"""What trainings keep is made once, and anew where it was damaged."""

from __future__ import annotations

import json

import pytest
import torch

from pellucid.errors import DamagedFileWarning, InvalidWeights
from pellucid.models.weights import read_facts
from pellucid.training.artifacts import Artifacts
from pellucid.training.classifiers import save_weights


def test_a_result_is_computed_once_and_again_where_it_was_damaged(tmp_path):
    kept, made = Artifacts(tmp_path), []

    def compute(folder):
        made.append(folder)
        return {"accuracy": 0.5 + 0.1 * len(made)}

    assert [kept.result("cnn", compute) for _ in range(3)] == [{"accuracy": 0.6}] * 3
    path = tmp_path / "results" / "cnn.json"
    path.write_text(path.read_text().replace("0.6", "0.9"))  # whole JSON, other values
    with pytest.warns(DamagedFileWarning, match=r"cnn.json: it was damaged since it was written; it is made anew"):
        assert kept.result("cnn", compute) == {"accuracy": 0.7}
    path.write_text("{")
    with pytest.warns(DamagedFileWarning):
        kept.result("cnn", compute)
    assert len(made) == 3


def test_results_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "results" / "cnn.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"accuracy": 0.25}))
    assert Artifacts(tmp_path).result("cnn", lambda folder: {}) == {"accuracy": 0.25}


def test_ranks_are_made_again_where_their_file_was_damaged(tmp_path):
    kept, ranks, made = Artifacts(tmp_path), torch.arange(24).view(2, 3, 4), []

    def parts():
        made.append(1)
        yield ranks

    assert torch.equal(kept.ranks("map", parts(), 2).long(), ranks)
    path = tmp_path / "ranks" / "map.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.warns(DamagedFileWarning, match=r"map.npy was damaged"):
        assert torch.equal(kept.ranks("map", parts(), 2).long(), ranks)
    assert len(made) == 2


def test_facts_beside_other_weights_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights(torch.nn.Linear(2, 2), path, {"classes": ["a", "b"]})
    assert read_facts(path) == {"classes": ("a", "b")}
    other = tmp_path / "other.safetensors"
    save_weights(torch.nn.Linear(2, 2), other, {"classes": ["c", "d"]})
    path.write_bytes(other.read_bytes())  # as a kill between weights and facts leaves them
    with pytest.raises(InvalidWeights, match="it tells of other weights than those beside it"):
        read_facts(path)
