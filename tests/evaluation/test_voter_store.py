import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.files import with_digest
from evaluation.metrics.calibration import Calibration
from evaluation.voters.registry import VOTERS, VoterOptions, unfitted_voters, voter_spec
from evaluation.voters.simple import Soft, Weighted, stacked_probabilities
from evaluation.voters.store import FittedEnsemble, digest, load, save
from tests.evaluation.tables import expert_tables

HASHES = ["aaa", "bbb", "ccc"]
CLASS_NAMES = ["none", "simple", "comminuted"]
OPTIONS = VoterOptions("body_part", ["elbow"], [1, 2, 3])


def test_every_voter_of_the_registry_loads_as_it_was_saved(tmp_path: Path) -> None:
    val, tables = expert_tables(1200), expert_tables(200, seed=5)
    members, groups = stacked_probabilities(tables), tables[0].rows["body_part"].to_numpy()
    temperatures = [Calibration(value) for value in (0.5, 1.0, 2.0)]
    for name, spec in VOTERS.items():
        voter = spec.create(val, OPTIONS)
        assert (voter.name, spec.name, type(voter)) == (name, name, spec.voter_class)
        ensemble = FittedEnsemble(
            voter, HASHES, CLASS_NAMES, Calibration(1.7), "digest", temperatures
        )
        save(tmp_path / name, ensemble)
        loaded = load(tmp_path / name, HASHES, CLASS_NAMES)
        assert np.array_equal(loaded(members, groups), ensemble(members, groups)), name
        assert (loaded.calibration.temperature, loaded.fitted_on) == (1.7, "digest")
        assert loaded.member_calibrations == temperatures


def test_vector_scaling_is_stored_and_is_a_part_of_the_digest(tmp_path: Path) -> None:
    scaled = Calibration(1.7, scales=[0.5, 1.0, 2.0], biases=[0.1, 0.0, -0.2], gain=0.3)
    ensemble = FittedEnsemble(Soft(), HASHES, CLASS_NAMES, scaled, "", [scaled] * 3)
    save(tmp_path, ensemble)
    loaded = load(tmp_path, HASHES, CLASS_NAMES)
    assert (loaded.calibration, loaded.member_calibrations) == (scaled, [scaled] * 3)
    p = np.array([[0.2, 0.3, 0.5]])
    powers = np.power(p, np.array([0.5, 1, 2]) / 1.7) * np.exp([0.1, 0, -0.2])
    np.testing.assert_allclose(loaded.calibration(p), powers / powers.sum())
    others = (replace(scaled, scales=[0.5, 1.0, 2.1]), replace(scaled, biases=[0.1, 0.0, 0.0]))
    digests = {digest(replace(ensemble, calibration=each)) for each in (scaled, *others)}
    assert len(digests) == 3


def test_an_unknown_voter_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown voter 'oracle'; known are soft, geometric, maj"):
        voter_spec("oracle")


def test_the_registry_states_what_a_voter_needs() -> None:
    assert unfitted_voters() == ["soft", "geometric", "majority"]
    missing = {name: spec.missing_options(VoterOptions()) for name, spec in VOTERS.items()}
    assert {name: options for name, options in missing.items() if options} == {
        "weighted": ["weights"],
        "per_group": ["attribute"],
        "group_attention": ["attribute", "attended_values"],
    }
    with pytest.raises(ValueError, match="voter 'per_group' needs attribute"):
        voter_spec("per_group").create(expert_tables(50), VoterOptions())
    with pytest.raises(ValueError, match="attended_values are values of an attribute"):
        VoterOptions(attended_values=["elbow"])


def _saved(folder: Path) -> None:
    save(folder, FittedEnsemble(Weighted(np.array([1, 2, 3])), HASHES, CLASS_NAMES))


def test_a_voter_fitted_for_other_members_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    with pytest.raises(ValueError, match="member 'zzz' is not one of them"):
        load(tmp_path, ["aaa", "bbb", "zzz"], CLASS_NAMES)
    with pytest.raises(ValueError, match=r"fitted for the members .*; not \['bbb', 'aaa', 'ccc'\]"):
        load(tmp_path, ["bbb", "aaa", "ccc"], CLASS_NAMES)
    with pytest.raises(ValueError, match="fitted for classes"):
        load(tmp_path, HASHES, CLASS_NAMES[::-1])


def test_a_changed_array_file_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    path = tmp_path / "voter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"does not belong to voter\.json"):
        load(tmp_path, HASHES, CLASS_NAMES)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 1, "schema and version"),
        ("voter", {"name": "oracle"}, "unknown voter 'oracle'"),
        ("voter", {"name": "weighted", "wait": 1}, "wait"),
    ],
)
def test_an_invalid_voter_file_is_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    _saved(tmp_path)
    path = tmp_path / "voter.json"
    path.write_text(json.dumps(with_digest({**json.loads(path.read_text()), key: value})))
    with pytest.raises(ValueError, match=message):
        load(tmp_path, HASHES, CLASS_NAMES)


def test_an_ensemble_refuses_another_number_of_members() -> None:
    ensemble = FittedEnsemble(Soft(), HASHES, ["a", "b"])
    with pytest.raises(ValueError, match=r"this ensemble needs \(3, 'n', 2\)"):
        ensemble(np.full((2, 5, 2), 0.5))


def test_an_ensemble_pools_first_and_calibrates_then() -> None:
    members = stacked_probabilities(expert_tables(50))
    softened = FittedEnsemble(Soft(), HASHES, CLASS_NAMES, Calibration(2.0))(members)
    root = np.sqrt(Soft()(members))
    np.testing.assert_allclose(softened, root / root.sum(1, keepdims=True), rtol=1e-10)
