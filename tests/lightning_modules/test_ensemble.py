"""EnsembleModule: order of classes, members kept on disk, voters, and what is refused."""

import gc
from pathlib import Path

import pytest
import torch

from consilium.cli.main import main
from evaluation.metrics.calibration import Calibration
from evaluation.results import read_results
from evaluation.voters import store
from evaluation.voters.simple import Soft
from lightning_modules import EnsembleModule, checkpoints
from lightning_modules.ensemble import load_ensemble
from tests.consilium import untrained

CLASSES = ["none", "simple", "comminuted"]
MEMORY_MAP = Path("/proc/self/maps")


@pytest.fixture(scope="module")
def runs(resnet, larger):
    return [str(resnet), str(larger)]


def predict(ensemble):
    """Member logits of a fixed batch with two views, one for each input size."""
    torch.manual_seed(0)
    sizes = dict(zip(ensemble.views, (32, 48), strict=True))
    images = {view: torch.randn(3, 3, size, size) for view, size in sizes.items()}
    with torch.inference_mode():
        return ensemble.eval().member_logits(images)


def test_member_logits_are_in_the_order_of_the_ensembles_classes(runs):
    logits = predict(EnsembleModule(CLASSES, runs))
    reversed_logits = predict(EnsembleModule(CLASSES[::-1], runs))
    assert torch.equal(logits.flip(-1), reversed_logits)
    torch.manual_seed(0)
    image = torch.randn(3, 3, 32, 32)
    module, _ = checkpoints.load(f"{runs[0]}/best.ckpt")
    with torch.inference_mode():
        assert torch.equal(logits[:, 0], module(image))


def test_offloaded_members_give_the_same_logits_and_are_no_submodules(runs):
    together, offloaded = EnsembleModule(CLASSES, runs), EnsembleModule(CLASSES, runs, "soft", True)
    assert torch.equal(predict(together), predict(offloaded))
    assert not list(offloaded.parameters())  # what Lightning moves to the device
    assert list(together.parameters())


def evaluated_weights(ensemble):
    """The hash of the weights in the metadata of its tables."""
    ensemble.on_test_epoch_start()
    return ensemble.measured_weights


def test_offloaded_members_have_the_same_weights_hash(runs):
    together, offloaded = (EnsembleModule(CLASSES, runs, one_at_a_time=x) for x in (False, True))
    assert evaluated_weights(together) == evaluated_weights(offloaded)
    before = evaluated_weights(offloaded)
    with torch.no_grad():
        next(offloaded.offloaded[1].parameters()).add_(1)
    assert evaluated_weights(offloaded) != before


@pytest.mark.skipif(not MEMORY_MAP.is_file(), reason="only Linux lists the mapped files")
def test_offloaded_members_stay_in_their_files(runs):
    def mapped_runs():
        return {path for path in runs if f"{path}/best.ckpt" in MEMORY_MAP.read_text()}

    together = EnsembleModule(CLASSES, runs)
    assert not mapped_runs()
    offloaded = EnsembleModule(CLASSES, runs, one_at_a_time=True)
    predict(offloaded)
    assert mapped_runs() == set(runs)
    del together, offloaded
    gc.collect()
    assert not mapped_runs()


def test_members_with_other_classes_are_refused(runs):
    with pytest.raises(ValueError, match=r"best\.ckpt: its classes are \['none', 'simple'"):
        EnsembleModule(["none", "simple", "open"], runs)


def test_an_ensemble_is_not_fitted(runs):
    with pytest.raises(ValueError, match="an ensemble is not trained: fit its members"):
        EnsembleModule(CLASSES, runs).setup("fit")


def test_a_voter_that_was_fitted_in_another_precision_is_refused(tiny, runs, tmp_path, capsys):
    hashes = [checkpoints.read(f"{run}/best.ckpt")[0].weights for run in runs]
    fitted = store.FittedEnsemble(Soft(), hashes, CLASSES, precision="32-true")
    store.save(tmp_path / "voters", fitted)
    model = {"class_path": "lightning_modules.EnsembleModule",
             "init_args": {"members": runs, "voter": str(tmp_path / "voters")}}  # fmt: skip
    test = ["test", *tiny.configs("precise", model=model), "--run", str(tmp_path / "run")]
    assert main([*test, "--trainer.precision", "bf16-mixed"]) == 2
    assert "trainer.precision: bf16-mixed, but its voter was fitted" in capsys.readouterr().err
    assert main(test) == 0
    assert read_results(tmp_path / "run/results.json").meta["precision"] == "32-true"


def test_a_voter_that_is_neither_known_nor_fitted_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"voter: '.*' is neither one of soft, geometric"):
        EnsembleModule(CLASSES, runs, str(tmp_path))


@pytest.fixture
def write_ensemble(runs, tmp_path):
    """Writes an ensemble.json of the runs into a folder, and optionally a fitted voter."""

    def write(name, fitted_on, temperature=None):
        files = [Path(run) / "best.ckpt" for run in runs]
        hashes = [checkpoints.read(file)[0].weights for file in files]
        calibration = Calibration(1.0 if temperature is None else temperature)
        fitted = store.FittedEnsemble(Soft(), hashes, CLASSES, calibration, fitted_on)
        voters = tmp_path / name.replace("ensemble", "voters")
        untrained.write_ensemble(tmp_path / name, files, fitted, voter_folder=voters)
        if temperature is None:
            (voters / "voter.json").unlink()
        return tmp_path / name

    return write


def test_each_ensemble_of_an_experiment_has_its_own_voter(write_ensemble, monkeypatch):
    temperatures = {"ensemble": 0.5, "ensemble-all_7": 0.6, "ensemble-seed0-fold1": 0.7}
    for name, value in temperatures.items():
        ensemble = load_ensemble(write_ensemble(name, "val", value)).ensemble
        assert ensemble.calibration.temperature == value
        monkeypatch.chdir(write_ensemble(f"{name}-cwd", "val", value))
        assert load_ensemble("ensemble.json").ensemble.calibration.temperature == value


def test_a_voter_with_another_identity_is_not_used(write_ensemble):
    lost = write_ensemble("ensemble-lost", "val")
    with pytest.raises(ValueError, match=r"no voter.json of its voter 'soft' in .*voters-lost"):
        load_ensemble(lost)
    write_ensemble("ensemble", "val", 0.5)
    assert load_ensemble(write_ensemble("plain", "")).ensemble.calibration.temperature == 1
