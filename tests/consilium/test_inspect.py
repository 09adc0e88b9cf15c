import json

import pytest
import torch

from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from lightning_modules.checkpoints import weights_hash


def inspect_json(capsys, *arguments):
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


def test_inspect_describes_a_checkpoint(resnet, capsys):
    code, (info,) = inspect_json(capsys, resnet / "best.ckpt")
    state = torch.load(resnet / "best.ckpt", weights_only=True)["state_dict"]
    assert code == 0
    assert info["is_intact"]
    assert info["is_measured"]
    assert info["weights"] == weights_hash(state)
    assert info["block"]["class_names"] == ["none", "simple", "comminuted"]
    assert info["block"]["preprocess"]["size"] == 32
    trainable = [v for name, v in state.items() if name.endswith(("weight", "bias"))]
    assert info["parameters"] == sum(tensor.numel() for tensor in trainable)
    zeros = sum(int((tensor == 0).sum()) for tensor in trainable)
    assert info["zero_fraction"] == pytest.approx(zeros / info["parameters"])
    assert main(["inspect", str(resnet)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert f"{info['parameters']:,} parameters" in output
    assert "intact" in output


def test_metrics_per_class_and_pair_are_those_of_the_prediction_table(pairs, capsys):
    _, (info,) = inspect_json(capsys, pairs)
    metrics = info["block"]["metrics"]
    table = PredictionTable.read(pairs / "predictions/val.parquet")
    is_correct = table.logits.argmax(axis=1) == table.labels
    is_simple = table.labels == 1
    assert metrics["recall/simple"] == pytest.approx(is_correct[is_simple].mean())
    in_pair = ~is_simple  # pair of none and comminuted: a logit above 0 predicts none
    is_correct = (table.pair_logits[in_pair, 1] > 0) == (table.labels[in_pair] == 0)
    assert metrics["pair/none/comminuted"] == pytest.approx(is_correct.mean())
    assert main(["inspect", str(pairs)]) == 0
    output = capsys.readouterr().out
    assert "none/comminuted" in output
    assert "recall" in output


def test_changed_weights_are_reported_with_exit_code_1(resnet, tmp_path, capsys):
    content = torch.load(resnet / "best.ckpt", weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("conv1.weight"))
    content["state_dict"][name].view(-1)[0] += 1e-3
    torch.save(content, tmp_path / "changed.ckpt")
    code, (info,) = inspect_json(capsys, tmp_path / "changed.ckpt")
    assert code == 1
    assert not info["is_intact"]
    assert main(["inspect", str(tmp_path / "changed.ckpt")]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "NOT the recorded ones" in output
    assert "computed with OTHER weights" in output


def test_members_are_compared_with_the_hashes_in_ensemble_json(resnet, larger, tmp_path, capsys):
    members = {}
    for run in (resnet, larger):
        _, (info,) = inspect_json(capsys, run)
        members[run.name] = {"path": str(run / "best.ckpt"), "weights": info["weights"]}
    content = {"format": 1, "class_names": info["block"]["class_names"],
               "voter": {"name": "soft"}, "members": members}  # fmt: skip
    (tmp_path / "ensemble.json").write_text(json.dumps(content))
    code, infos = inspect_json(capsys, tmp_path)
    assert code == 0
    assert [info["path"] for info in infos] == [member["path"] for member in members.values()]
    members["larger"]["weights"] = members["resnet"]["weights"]
    (tmp_path / "ensemble.json").write_text(json.dumps(content))
    code, infos = inspect_json(capsys, tmp_path / "ensemble.json")
    assert code == 1
    assert [info["is_intact"] for info in infos] == [True, False]


def test_invalid_checkpoint_is_one_line(tmp_path, capsys):
    (tmp_path / "x.ckpt").write_text("text")
    assert main(["inspect", str(tmp_path / "x.ckpt")]) == 2
    assert "x.ckpt: truncated, or not a checkpoint" in capsys.readouterr().err
