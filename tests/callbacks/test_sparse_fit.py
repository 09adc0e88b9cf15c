"""Two stages through the front door."""

import json
import shutil

import pandas as pd
import pytest
import torch

from consilium.cli.main import main
from evaluation.results import read_results

SPARSE = {"class_path": "callbacks.TwoStageSparseTraining",
          "init_args": {"density": 0.25, "dense_epochs": 1, "sparse_epochs": 2,
                        "ramp": {"share": 0.4, "updates": 2},
                        "recovery": {"lr": 1e-3, "warmup_epochs": 0.5}}}  # fmt: skip
CHANGES = {"data.init_args.preprocess": {"size": 64}, "trainer.max_epochs": 3}


@pytest.fixture(scope="module")
def run(tiny):
    return tiny.fit("sparse", tiny.root / "runs" / "sparse",
                    **CHANGES, **{"trainer.callbacks+": [SPARSE]})  # fmt: skip


def test_a_checkpoint_tested_without_the_callback_gives_the_same_figures(tiny, run, tmp_path):
    plain = tiny.configs("plain", **CHANGES)
    args = ["test", *plain, "--ckpt_path", str(run / "best.ckpt"), "--run", str(tmp_path / "again")]
    assert main(args) == 0
    first, again = (read_results(r / "results.json") for r in (run, tmp_path / "again"))
    assert first.metrics == again.metrics


def test_files_say_what_was_pruned(run):
    said = json.loads((run / "sparsity.json").read_text())
    state = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert said["layers"]
    for layer in said["layers"]:
        assert int(state[layer["name"]].count_nonzero()) == layer["kept"]
    total = sum(layer["numbers"] for layer in said["layers"])
    assert sum(layer["kept"] for layer in said["layers"]) == round(0.25 * total)
    assert said["latency_ratio_measured"] is None
    assert "Nothing was measured to get faster" in (run / "report.html").read_text()
    assert pd.read_csv(run / "history.csv")["sparse/stage"].tolist() == [1, 2, 2]


def test_the_dense_model_is_not_credited_with_what_the_sparse_one_saves(tiny, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    for checkpoint, words in (("best.ckpt", True), ("dense.ckpt", False)):
        args = ["--ckpt_path", str(folder / checkpoint), "--run", str(folder)]
        assert main(["test", *tiny.configs("plain", **CHANGES), *args]) == 0
        assert bool(read_results(folder / "results.json").measures) is words
        assert ("Pruned layers" in (folder / "report.html").read_text()) is words


def test_stage_two_alone_goes_on_from_a_file_but_not_from_other_splits(tiny, run, tmp_path, capsys):
    alone = json.loads(json.dumps(SPARSE))
    alone["init_args"] |= {"dense_epochs": 0, "start": str(run / "dense.ckpt")}
    changes = CHANGES | {"trainer.callbacks+": [alone], "trainer.max_epochs": 2}
    tiny.fit("alone", tmp_path / "alone", **changes)
    one, other = (torch.load(r / "last.ckpt", weights_only=True)["state_dict"]
                  for r in (run, tmp_path / "alone"))  # fmt: skip
    assert one.keys() == other.keys()
    assert json.loads((tmp_path / "alone/sparsity.json").read_text())["activation_rate"] == 0.25
    source = {"class_path": "datamodules.Phantoms", "init_args": {
        "kind": "fracture", "patients": 30, "films": 2, "size": 64,
        "root": str(tiny.root / "phantoms"), "val": 0.1, "test": 0.5}}  # fmt: skip
    configs = tiny.configs("moved", **changes, **{"data.init_args.source": source})
    assert main(["fit", *configs, "--run", str(tmp_path / "moved")]) != 0
    assert "was trained on another manifest" in capsys.readouterr().err
