import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics.calibration import Temperature
from evaluation.voters.attention import fit_part_attention, fit_stacked
from evaluation.voters.learned import fit_greedy, fit_learned, fit_per_class, fit_per_part
from evaluation.voters.simple import Geometric, Majority, Soft, Voter, Weighted, stack
from evaluation.voters.store import VOTERS, FittedEnsemble, load, save
from tests.evaluation.tables import experts

HASHES = ["aaa", "bbb", "ccc"]


def _all() -> list[Voter]:
    tables = experts(1200)
    return [
        Soft(),
        Geometric(),
        Majority(),
        Weighted(np.array([1, 2, 3])),
        fit_learned(tables),
        fit_greedy(tables),
        fit_per_class(tables),
        fit_per_part(tables),
        fit_stacked(tables),
        fit_part_attention(tables, ["elbow"]),
    ]


def test_every_voter_survives_its_file(tmp_path: Path) -> None:
    tables, voters = experts(200, seed=5), _all()
    members, parts = stack(tables), tables[0].rows["body_part"].to_numpy()
    for voter in voters:
        ensemble = FittedEnsemble(voter, HASHES, tables[0].class_names, Temperature(1.7), "digest")
        save(tmp_path / voter.kind, ensemble)
        again = load(tmp_path / voter.kind, HASHES, tables[0].class_names)
        assert np.array_equal(again(members, parts), ensemble(members, parts)), voter.kind
        assert (again.temperature.value, again.fitted_on) == (1.7, "digest")
    assert {v.kind for v in voters} == set(VOTERS)
    assert all(VOTERS[v.kind] is type(v) for v in voters)


def _saved(folder: Path) -> list[str]:
    names = ["none", "simple", "comminuted"]
    save(folder, FittedEnsemble(Weighted(np.array([1, 2, 3])), HASHES, names))
    return names


def test_a_voter_fitted_for_other_members_is_refused(tmp_path: Path) -> None:
    names = _saved(tmp_path)
    with pytest.raises(ValueError, match="member 'zzz' is not one of them"):
        load(tmp_path, ["aaa", "bbb", "zzz"], names)
    with pytest.raises(ValueError, match=r"fitted for the members .*; not \['bbb', 'aaa', 'ccc'\]"):
        load(tmp_path, ["bbb", "aaa", "ccc"], names)
    with pytest.raises(ValueError, match="fitted for classes"):
        load(tmp_path, HASHES, names[::-1])


def test_a_changed_array_file_is_refused(tmp_path: Path) -> None:
    names = _saved(tmp_path)
    path = tmp_path / "voter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"does not belong to voter\.json"):
        load(tmp_path, HASHES, names)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", 2, "schema and version"),
        ("voter", {"kind": "oracle"}, "voter kind 'oracle' is not among"),
        ("voter", {"kind": "weighted", "wait": 1}, "wait"),
    ],
)
def test_a_strange_voter_file_is_refused(
    tmp_path: Path, key: str, value: object, said: str
) -> None:
    names = _saved(tmp_path)
    path = tmp_path / "voter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=said):
        load(tmp_path, HASHES, names)


def test_a_ensemble_refuses_another_number_of_members() -> None:
    ensemble = FittedEnsemble(Soft(), HASHES, ["a", "b"])
    with pytest.raises(ValueError, match=r"this ensemble needs \(3, 'n', 2\)"):
        ensemble(np.full((2, 5, 2), 0.5))


def test_a_ensemble_pools_first_and_calibrates_then() -> None:
    members = stack(experts(50))
    names = ["none", "simple", "comminuted"]
    hot = FittedEnsemble(Soft(), HASHES, names, Temperature(2.0))(members)
    root = np.sqrt(Soft()(members))
    np.testing.assert_allclose(hot, root / root.sum(1, keepdims=True), rtol=1e-10)
