"""An ensemble's module by itself: order of classes, ways to keep members, what is refused."""

import gc
import json
from pathlib import Path

import pytest
import torch

from evaluation.metrics.calibration import Temperature
from evaluation.voters import store
from evaluation.voters.simple import Soft
from lightning_modules import EnsembleModule, checkpoints
from lightning_modules.ensemble import load_ensemble

CLASSES = ["none", "simple", "comminuted"]
MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module")
def runs(resnet, larger):
    return [str(resnet), str(larger)]


def asked(ensemble):
    """Votes of one fixed batch; two views, one for each size."""
    torch.manual_seed(0)
    ensemble.views = ["small", "large"]
    images = {"small": torch.randn(3, 3, 32, 32), "large": torch.randn(3, 3, 48, 48)}
    with torch.inference_mode():
        return ensemble.eval().votes({"image": images, "label": None, "index": None})


def test_votes_are_the_members_own_logits_in_the_ensembles_order(runs):
    votes = asked(EnsembleModule(CLASSES, runs))
    turned = asked(EnsembleModule(CLASSES[::-1], runs))
    assert torch.equal(votes.flip(-1), turned)
    torch.manual_seed(0)
    small = torch.randn(3, 3, 32, 32)
    module, _ = checkpoints.load(f"{runs[0]}/best.ckpt")
    with torch.inference_mode():
        assert torch.equal(votes[:, 0], module(small))


def test_members_kept_apart_say_the_same_and_are_no_part_of_the_module(runs):
    together, apart = EnsembleModule(CLASSES, runs), EnsembleModule(CLASSES, runs, "soft", True)
    assert torch.equal(asked(together), asked(apart))
    assert not list(apart.parameters())  # what a device is given
    assert list(together.parameters())


def stated(ensemble):
    """The hash of the weights that its tables would state."""
    ensemble.on_test_epoch_start()
    return ensemble.measured


def test_members_kept_apart_state_the_same_weights(runs):
    together, apart = (EnsembleModule(CLASSES, runs, one_at_a_time=x) for x in (False, True))
    assert stated(together) == stated(apart)
    before = stated(apart)
    with torch.no_grad():
        next(apart.apart[1].parameters()).add_(1)
    assert stated(apart) != before


@pytest.mark.skipif(not MAPS.is_file(), reason="only Linux says which files are mapped")
def test_members_kept_apart_stay_in_their_files(runs):
    def mapped():
        return {path for path in runs if f"{path}/best.ckpt" in MAPS.read_text()}

    together = EnsembleModule(CLASSES, runs)
    assert not mapped()
    apart = EnsembleModule(CLASSES, runs, one_at_a_time=True)
    asked(apart)
    assert mapped() == set(runs)
    del together, apart
    gc.collect()
    assert not mapped()


def test_another_layout_of_the_weights_says_the_same(runs):
    plain, other = EnsembleModule(CLASSES, runs), EnsembleModule(CLASSES, runs, channels_last=True)
    kernels = [p for p in other.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    torch.testing.assert_close(asked(plain), asked(other), rtol=0, atol=1e-5)


def test_members_of_other_classes_are_refused(runs):
    with pytest.raises(ValueError, match=r"best\.ckpt: its classes are \['none', 'simple'"):
        EnsembleModule(["none", "simple", "open"], runs)


def test_a_ensemble_is_not_fitted(runs):
    with pytest.raises(ValueError, match="an ensemble is not trained: fit its members"):
        EnsembleModule(CLASSES, runs).setup("fit")


def test_a_voter_that_is_neither_known_nor_fitted_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"voter: '.*' is neither one of soft, geometric"):
        EnsembleModule(CLASSES, runs, str(tmp_path))


@pytest.fixture
def convened(runs, tmp_path):
    """Writes an ensemble.json of the runs into a folder, with what it says of its voter."""

    def written(name, fitted_on, temperature=None):
        blocks = {run: checkpoints.read(f"{run}/best.ckpt")[0] for run in runs}
        members = {r: {"path": f"{r}/best.ckpt", "weights": b.weights} for r, b in blocks.items()}
        said = {"format": 1, "class_names": CLASSES, "members": members,
                "voter": {"kind": "soft", "fitted_on": fitted_on}}  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "ensemble.json").write_text(json.dumps(said))
        if temperature is not None:
            hashes = [block.weights for block in blocks.values()]
            fitted = store.FittedEnsemble(
                Soft(), hashes, CLASSES, Temperature(temperature), fitted_on
            )
            store.save(tmp_path / name.replace("ensemble", "voters"), fitted)
        return tmp_path / name

    return written


def test_each_ensemble_of_a_study_is_calibrated_by_its_own_voters(convened, monkeypatch):
    heats = {"ensemble": 0.5, "ensemble-all_7": 0.6, "ensemble-seed0-fold1": 0.7}
    for name, heat in heats.items():
        assert load_ensemble(convened(name, "val", heat)).ensemble.temperature.value == heat
        monkeypatch.chdir(convened(f"{name}-here", "val", heat))
        assert load_ensemble("ensemble.json").ensemble.temperature.value == heat


def test_a_voter_that_is_not_the_one_stated_is_not_taken(convened):
    lost = convened("ensemble-lost", "val")
    with pytest.raises(ValueError, match=r"no voter.json of its voter 'soft' in .*voters-lost"):
        load_ensemble(lost)
    convened("ensemble", "val", 0.5)
    assert load_ensemble(convened("plain", "")).ensemble.temperature.value == 1
