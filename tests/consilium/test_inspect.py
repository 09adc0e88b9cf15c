import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from consilium.cli.main import main
from evaluation.metrics.calibration import Calibration
from evaluation.predictions import PredictionTable
from evaluation.voters import store
from evaluation.voters.simple import Soft
from evaluation.voters.store import FittedEnsemble
from lightning_modules import EnsembleModule, checkpoints
from lightning_modules.checkpoints import weights_hash
from lightning_modules.ensemble import load_ensemble
from tests.consilium.untrained import write_ensemble


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
    content["state_dict"][name] *= 1.001
    torch.save(content, tmp_path / "changed.ckpt")
    code, (info,) = inspect_json(capsys, tmp_path / "changed.ckpt")
    assert code == 1
    assert not info["is_intact"]
    assert main(["inspect", str(tmp_path / "changed.ckpt")]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "NOT the recorded ones" in output
    assert "computed with OTHER weights" in output


def test_members_are_compared_with_the_hashes_in_ensemble_json(resnet, larger, tmp_path, capsys):
    files = [shutil.copy(run / "best.ckpt", tmp_path / f"{run.name}.ckpt")
             for run in (resnet, larger)]  # fmt: skip
    write_ensemble(tmp_path, files)
    code, infos = inspect_json(capsys, tmp_path)
    assert code == 0
    assert [info["path"] for info in infos] == [str(file) for file in files]
    shutil.copy(files[0], files[1])
    code, infos = inspect_json(capsys, tmp_path / "ensemble.json")
    assert code == 1
    assert [info["is_intact"] for info in infos] == [True, False]


def test_invalid_checkpoint_is_one_line(tmp_path, capsys):
    (tmp_path / "x.ckpt").write_text("text")
    assert main(["inspect", str(tmp_path / "x.ckpt")]) == 2
    assert "x.ckpt: truncated, or not a checkpoint" in capsys.readouterr().err


def change_block(source, target, **values):
    """A copy of a checkpoint with changed fields of its block; weights and digest stay."""
    content = torch.load(source, weights_only=True)
    content["consilium"].update(values)
    torch.save(content, target)
    return target


def require_refusal(file, message, config, capsys):
    """An ensemble, `inspect` and `test` refuse a checkpoint with one line."""
    with pytest.raises(ValueError, match=message):
        EnsembleModule(["none", "simple", "comminuted"], [str(file)])
    test = ["test", "--config", str(config), "--ckpt_path", str(file)]
    for command in (["inspect", str(file)], [*test, "--run", str(file.parent / "run")]):
        assert main(command) == 2
        line = capsys.readouterr().err
        assert message in line
        assert line.count("\n") == 1


@pytest.mark.parametrize("field", ["class_names", "preprocess", "init_args", "train_ids"])
def test_an_edited_block_is_refused_by_name_everywhere(resnet, tmp_path, field, capsys):
    content = torch.load(resnet / "best.ckpt", weights_only=True)["consilium"]
    reversed_names = content["class_names"][::-1]
    changed = {
        "class_names": {"class_names": reversed_names,
                        "init_args": content["init_args"] | {"class_names": reversed_names}},
        "preprocess": {"preprocess": content["preprocess"] | {"mean": (0.9, 0.9, 0.9)}},
        "init_args": {"init_args": content["init_args"] | {"head": "sigmoid"}},
        "train_ids": {"train_ids": content["train_ids"][:0]},
    }  # fmt: skip
    file = change_block(resnet / "best.ckpt", tmp_path / "edited.ckpt", **changed[field])
    message = "edited.ckpt: was changed after it was written: its content does not match"
    require_refusal(file, message, resnet / "config.yaml", capsys)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [("nan", torch.float32), ("-inf", torch.float16), ("nan", torch.float8_e4m3fn)],
)
def test_weights_that_are_not_finite_are_refused_by_name(resnet, tmp_path, value, dtype, capsys):
    content = torch.load(resnet / "best.ckpt", weights_only=True)
    state = content["state_dict"]
    name = next(name for name, weight in state.items() if weight.ndim == 4)
    state[name][0, 0, 0, 0] = float(value)
    state[name] = state[name].to(dtype)
    block = content["consilium"] | {"weights": weights_hash(state)}
    content["consilium"] = checkpoints.block_with_digest(block)
    file = tmp_path / "diverged.ckpt"
    torch.save(content, file)
    message = f"diverged.ckpt: its weight '{name}' has NaN or infinity"
    require_refusal(file, message, resnet / "config.yaml", capsys)


def test_an_ensemble_is_what_was_evaluated_or_is_refused(resnet, tmp_path, capsys):
    """Of a member with the same weights and another class order, whose digest was made to fit."""
    member = shutil.copy(resnet / "best.ckpt", tmp_path / "member.ckpt")
    weights = checkpoints.read(member)[0].weights
    voter = FittedEnsemble(Soft(), [weights], ["none", "simple", "comminuted"], Calibration(0.5))
    folder = write_ensemble(tmp_path / "ensemble", [member], voter)
    assert main(["inspect", str(folder)]) == 0
    content = torch.load(member, weights_only=True)
    block, names = content["consilium"], ["comminuted", "simple", "none"]
    block |= {"class_names": names, "init_args": block["init_args"] | {"class_names": names}}
    content["consilium"] = checkpoints.block_with_digest(block)
    torch.save(content, member)
    with pytest.raises(ValueError, match=r"ensemble.json: member 'member' has other classes"):
        load_ensemble(folder)
    assert main(["inspect", str(folder)]) == 1
    shutil.copy(resnet / "best.ckpt", member)
    assert load_ensemble(folder).ensemble.calibration.temperature == 0.5
    text = (folder / "voter.json").read_text()
    (folder / "voter.json").write_text(text.replace('"temperature": 0.5', '"temperature": 2.0'))
    with pytest.raises(ValueError, match=r"voter\.json: was changed after it was written"):
        load_ensemble(folder)
    store.save(folder, replace(voter, calibration=Calibration(2.0)))
    with pytest.raises(ValueError, match=r"ensemble\.json: voter\.json of its voter 'soft'"):
        load_ensemble(folder)
    store.save(folder, voter)
    text = (folder / "ensemble.json").read_text()
    (folder / "ensemble.json").write_text(text.replace('"simple"', '"none"', 1))
    with pytest.raises(ValueError, match=r"ensemble\.json: was changed after it was written"):
        load_ensemble(folder)


def test_an_ensemble_can_be_moved_with_its_members(resnet, tmp_path):
    member = shutil.copy(resnet / "best.ckpt", tmp_path / "member.ckpt")
    file = write_ensemble(tmp_path / "ensemble", [member]) / "ensemble.json"
    (tmp_path / "new").mkdir()
    Path(member).rename(tmp_path / "new" / "member.ckpt")
    file.write_text(file.read_text().replace("../member.ckpt", "../new/member.ckpt"))
    assert load_ensemble(file).member_names == ("member",)


def test_a_signature_is_of_this_model_and_this_key(resnet, tmp_path, capsys, monkeypatch):
    file = shutil.copy(resnet / "best.ckpt", tmp_path / "model.ckpt")
    for name in ("own", "other"):
        (tmp_path / f"{name}.key").write_text(f"a secret of the {name} team\n")
    own, other = (["--key", str(tmp_path / f"{name}.key")] for name in ("own", "other"))

    def inspect(*arguments):
        code = main(["inspect", str(file), *arguments])
        return code, " ".join(capsys.readouterr().out.split())

    code, output = inspect()
    assert code == 0
    assert "matches: unchanged since it was written; it does not show who wrote it" in output
    assert "signature not verified, no --key: who made this model is unknown" in output
    assert inspect(*own)[0] == 1
    assert "MISSING: nobody who has your key signed" in inspect(*own)[1]
    assert inspect("--sign", *own)[0] == 0
    code, output = inspect(*own)
    assert code == 0
    assert "VALID: somebody who has your key signed exactly this model" in output
    code, output = inspect(*other)
    assert code == 1
    assert "NOT VALID: signed with another key, or changed since" in output
    monkeypatch.setenv("CONSILIUM_KEY", "a secret of the own team")
    assert inspect()[0] == 0
    content = torch.load(file, weights_only=True)
    content["consilium"] = checkpoints.block_with_digest(content["consilium"] | {"epoch": 7})
    torch.save(content, file)
    code, output = inspect()
    assert code == 1
    assert "digest" in output
    assert "NOT VALID" in output


def test_keys_and_signing_without_one_are_refused_in_one_line(resnet, tmp_path, capsys):
    (tmp_path / "short.key").write_text("abc")
    assert main(["inspect", str(resnet), "--key", str(tmp_path / "short.key")]) == 2
    assert "short.key: 3 bytes; a key has at least 16" in capsys.readouterr().err
    assert main(["inspect", str(resnet), "--sign"]) == 2
    assert "--sign: needs --key FILE, or a key in CONSILIUM_KEY" in capsys.readouterr().err


def test_an_edited_export_is_refused_by_name(resnet, tmp_path, capsys):
    out = tmp_path / "export"
    assert main(["export", str(resnet), "--format", "safetensors", "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert "export.json digest" in " ".join(capsys.readouterr().out.split())
    text = (out / "export.json").read_text()
    (out / "export.json").write_text(text.replace('"simple"', '"none"'))
    assert main(["inspect", str(out)]) == 2
    assert "export.json: was changed after it was written" in capsys.readouterr().err
