"""Sparse training through the command line."""

import json
import shutil

import pandas as pd
import pytest
import torch

from consilium.cli.main import main
from evaluation.results import read_results

SPARSE = {"class_path": "callbacks.TwoStageSparseTraining",
          "init_args": {"density": 0.25, "dense_epochs": 1, "sparse_epochs": 2,
                        "density_schedule": {"ramp_fraction": 0.4, "num_updates": 2},
                        "recovery": {"lr": 1e-3, "warmup_epochs": 0.5}}}  # fmt: skip
CHANGES = {"data.init_args.preprocess": {"size": 64}, "trainer.max_epochs": 3}


@pytest.fixture(scope="module")
def run(tiny):
    return tiny.fit("sparse", tiny.root / "runs" / "sparse",
                    **CHANGES, **{"trainer.callbacks+": [SPARSE]})  # fmt: skip


def test_a_test_without_the_callback_gives_the_same_metrics(tiny, run, tmp_path):
    configs = tiny.configs("plain", **CHANGES)
    checkpoint = ["--ckpt_path", str(run / "best.ckpt"), "--run", str(tmp_path / "again")]
    assert main(["test", *configs, *checkpoint]) == 0
    first, again = (read_results(r / "results.json") for r in (run, tmp_path / "again"))
    assert first.metrics == again.metrics


def test_sparsity_json_report_and_history_describe_the_pruned_layers(run):
    content = json.loads((run / "sparsity.json").read_text())
    state = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert content["layers"]
    for layer in content["layers"]:
        assert int(state[layer["name"]].count_nonzero()) == layer["nonzeros"]
    total = sum(layer["size"] for layer in content["layers"])
    assert sum(layer["nonzeros"] for layer in content["layers"]) == round(0.25 * total)
    assert content["latency_ratio_measured"] is None
    assert "No speedup and no energy saving was measured" in (run / "report.html").read_text()
    assert pd.read_csv(run / "history.csv")["sparse/stage"].tolist() == [1, 2, 2]


@pytest.mark.exhaustive
def test_the_report_of_the_dense_checkpoint_states_no_savings(tiny, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    for checkpoint, is_sparse in (("best.ckpt", True), ("dense.ckpt", False)):
        arguments = ["--ckpt_path", str(folder / checkpoint), "--run", str(folder)]
        assert main(["test", *tiny.configs("plain", **CHANGES), *arguments]) == 0
        assert bool(read_results(folder / "results.json").measures) is is_sparse
        assert ("Pruned layers" in (folder / "report.html").read_text()) is is_sparse


@pytest.mark.exhaustive
def test_the_sparse_stage_alone_starts_from_a_checkpoint_of_the_same_splits(
    tiny, run, tmp_path, capsys
):
    alone = json.loads(json.dumps(SPARSE))
    alone["init_args"] |= {"dense_epochs": 0, "dense_checkpoint": str(run / "dense.ckpt")}
    changes = CHANGES | {"trainer.callbacks+": [alone], "trainer.max_epochs": 2}
    tiny.fit("alone", tmp_path / "alone", **changes)
    both, sparse_only = (torch.load(r / "last.ckpt", weights_only=True)["state_dict"]
                         for r in (run, tmp_path / "alone"))  # fmt: skip
    assert both.keys() == sparse_only.keys()
    content = json.loads((tmp_path / "alone/sparsity.json").read_text())
    assert content["density"] == 0.25
    source = {"class_path": "datamodules.Phantoms", "init_args": {
        "kind": "fracture", "num_patients": 30, "images_per_patient": 2, "image_size": 64,
        "root": str(tiny.root / "phantoms"), "val": 0.1, "test": 0.5}}  # fmt: skip
    configs = tiny.configs("moved", **changes, **{"data.init_args.source": source})
    assert main(["fit", *configs, "--run", str(tmp_path / "moved")]) != 0
    assert "was trained on another manifest" in capsys.readouterr().err
