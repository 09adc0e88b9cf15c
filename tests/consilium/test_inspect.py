import json

import pytest
import torch

from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from lightning_modules.checkpoints import weights_hash


def said(capsys, *arguments):
    code = main(["inspect", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def pairs(tiny):
    changes = {
        "model.class_path": "lightning_modules.OneVsOneClassifier",
        "model.init_args.backbone_args": {},
        "trainer.max_epochs": 1,
    }
    return tiny.fit("pairs", tiny.root / "runs" / "pairs", **changes)


def test_it_tells_what_a_checkpoint_is(resnet, capsys):
    code, (one,) = said(capsys, resnet / "best.ckpt")
    state = torch.load(resnet / "best.ckpt", weights_only=True)["state_dict"]
    assert code == 0
    assert one["intact"]
    assert one["measured"]
    assert one["weights"] == weights_hash(state)
    assert one["block"]["class_names"] == ["none", "simple", "comminuted"]
    assert one["block"]["preprocess"]["size"] == 32
    trained = sum(v.numel() for n, v in state.items() if n.endswith(("weight", "bias")))
    assert one["parameters"] == trained
    assert main(["inspect", str(resnet)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{one['parameters']:,} parameters" in shown
    assert "as stated" in shown


def test_figures_of_each_class_and_pair_are_those_of_the_tables(pairs, capsys):
    _, (one,) = said(capsys, pairs)
    metrics = one["block"]["metrics"]
    table = PredictionTable.read(pairs / "predictions/val.parquet")
    said_right = table.logits.argmax(axis=1) == table.labels
    of_class = table.labels == 1
    assert metrics["recall/simple"] == pytest.approx(said_right[of_class].mean())
    asked = table.labels != 1  # of the pair none, comminuted: logit above 0 says none
    right = (table.pairs[asked, 1] > 0) == (table.labels[asked] == 0)
    assert metrics["pair/none/comminuted"] == pytest.approx(right.mean())
    assert main(["inspect", str(pairs)]) == 0
    shown = capsys.readouterr().out
    assert "none/comminuted" in shown
    assert "recall" in shown


def test_weights_that_are_not_those_stated_are_told_and_end_in_1(resnet, tmp_path, capsys):
    content = torch.load(resnet / "best.ckpt", weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("conv1.weight"))
    content["state_dict"][name].view(-1)[0] += 1e-3
    torch.save(content, tmp_path / "changed.ckpt")
    code, (one,) = said(capsys, tmp_path / "changed.ckpt")
    assert code == 1
    assert not one["intact"]
    assert main(["inspect", str(tmp_path / "changed.ckpt")]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "NOT those stated" in shown
    assert "measured on OTHER weights" in shown


def test_a_ensembles_members_are_held_to_the_hashes_it_states(resnet, larger, tmp_path, capsys):
    members = {}
    for run in (resnet, larger):
        _, (one,) = said(capsys, run)
        members[run.name] = {"path": str(run / "best.ckpt"), "weights": one["weights"]}
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": members}))
    code, found = said(capsys, tmp_path)
    assert code == 0
    assert [one["path"] for one in found] == [m["path"] for m in members.values()]
    members["larger"]["weights"] = members["resnet"]["weights"]
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": members}))
    code, found = said(capsys, tmp_path / "ensemble.json")
    assert code == 1
    assert [one["intact"] for one in found] == [True, False]


def test_what_is_no_checkpoint_is_one_line(tmp_path, capsys):
    (tmp_path / "x.ckpt").write_text("not one")
    assert main(["inspect", str(tmp_path / "x.ckpt")]) == 2
    assert "x.ckpt: truncated, or not a checkpoint" in capsys.readouterr().err
