"""Members of the shipped experiments: their settings, and errors that are found before training."""

import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from jsonargparse import Namespace

from consilium.cli.main import main
from consilium.experiments.config import load_experiment
from consilium.experiments.plan import plan
from consilium.experiments.run import Run
from consilium.inference import data_config
from consilium.training.lightning_cli import validate_config
from lightning_modules import backbones, model_info
from tests.conftest import ROOT, Tiny, exhaustive_except

CONFIGS = ROOT / "configs"
EXPERIMENTS = ("fracture", "fundus", "mura", "mura_pretrained", "chest_sparse", "gradcam")


def members(experiment: str) -> dict[str, Run]:
    """The runs that fit a member, by name."""
    runs = plan(load_experiment(CONFIGS / f"experiments/{experiment}.yaml"), Path("runs"))
    return {run.name: run for run in runs if run.arguments[0] == "fit"}


MEMBERS = [(experiment, name) for experiment in EXPERIMENTS for name in members(experiment)]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# the system prescribes ImageNet's mean and std for all its members
NORMALIZED_BY_SYSTEM = [("fracture", "tf_efficientnetv2_s")]


@cache
def settings(experiment: str, name: str, *arguments: str) -> dict[str, Any]:
    """The parsed config of a member."""
    config = validate_config([*members(experiment)[name].arguments, *arguments])
    parsed: dict[str, Any] = _plain(config["fit"])
    return parsed


def _plain(value: object) -> Any:
    if isinstance(value, Namespace):
        return {k: _plain(item) for k, item in vars(value).items() if k != "__path__"}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("experiment", "name"), MEMBERS, ids=map("/".join, MEMBERS))
def test_a_member_has_the_callbacks_of_the_base_config(experiment: str, name: str) -> None:
    config = settings(experiment, name)
    names = {callback["class_path"] for callback in config["trainer"]["callbacks"]}
    assert {"callbacks.ResultsWriter", "callbacks.PredictionWriter"} <= names
    pretrained = config["model"]["init_args"]["pretrained"]
    assert pretrained is ("residual" not in str(config["model"]))


@pytest.mark.parametrize(("experiment", "name"), MEMBERS, ids=map("/".join, MEMBERS))
def test_adamw_has_weight_decay(experiment: str, name: str) -> None:
    """Without it AdamW is Adam."""
    optimizer = settings(experiment, name)["model"]["init_args"]["optimizer"]
    assert optimizer["name"] != "adamw" or optimizer["weight_decay"] > 0


@pytest.mark.parametrize(("experiment", "name"), MEMBERS, ids=map("/".join, MEMBERS))
def test_images_are_normalized_as_pretrained_weights_need_them(experiment: str, name: str) -> None:
    config = settings(experiment, name)
    model, preprocess = config["model"]["init_args"], config["data"]["init_args"]["preprocess"]
    weights = timm.get_pretrained_cfg(model["backbone"])
    expected = (weights.mean, weights.std)
    if (experiment, name) in NORMALIZED_BY_SYSTEM:
        assert expected != IMAGENET
        expected = IMAGENET
    assert (tuple(preprocess["mean"]), tuple(preprocess["std"])) == expected
    assert not weights.fixed_input_size or preprocess["size"] == weights.input_size[-1]


@pytest.mark.parametrize(
    ("name", "millions"),
    [("convnextv2_base", 87.7), ("tf_efficientnetv2_s", 20.2), ("maxvit_tiny", 30.4),
     ("swin_tiny", 27.5)],
)  # fmt: skip
def test_fracture_members_have_the_published_number_of_parameters(
    name: str, millions: float
) -> None:
    backbone = settings("fracture", name)["model"]["init_args"]["backbone"]
    with torch.device("meta"):
        net = backbones.build(backbone, 3, image_size=224)
    assert model_info.count_parameters(net) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("trainer", ["ddp", "gpu", "torchrun"])
def test_a_trainer_config_changes_devices_and_not_epochs(trainer: str) -> None:
    file = str(CONFIGS / f"trainer/{trainer}.yaml")
    config = settings("fundus", "resnet50", "--trainer", file)["trainer"]
    assert (config["accelerator"], config["max_epochs"]) == ("gpu", 100)
    assert config["accumulate_grad_batches"] == 4


@pytest.mark.parametrize(
    ("name", "backbone", "batch_size"),
    [
        ("convnextv2_base", "convnextv2_base.fcmae_ft_in22k_in1k", 16),
        ("tf_efficientnetv2_s", "tf_efficientnetv2_s.in21k_ft_in1k", 32),
        ("maxvit_tiny", "maxvit_tiny_tf_224.in1k", 24),
        ("swin_tiny", "swin_tiny_patch4_window7_224.ms_in22k_ft_in1k", 32),
    ],
)
def test_fracture_members(name: str, backbone: str, batch_size: int) -> None:
    config = settings("fracture", name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (model["backbone"], model["pretrained"]) == (backbone, True)
    assert data["batch_size"] == batch_size
    assert model["optimizer"].items() >= {"name": "adam", "lr": 1e-4}.items()
    assert model["lr_scheduler"]["name"] == "plateau"
    assert (config["trainer"]["max_epochs"], config["early_stopping"]["patience"]) == (30, 5)
    assert (data["preprocess"]["size"], data["augment"]) == (224, "fracture")


@pytest.mark.parametrize("name", members("fundus"))
def test_fundus_members(name: str) -> None:
    config = settings("fundus", name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["model"]["class_path"] == "lightning_modules.OneVsOneClassifier"
    loss = {"gamma": 3.0, "alpha": 2.5, "label_smoothing": 0.1}
    assert model["loss"].items() >= loss.items()
    optimizer = {"name": "adamw", "lr": 5e-5, "weight_decay": 2.5e-4}
    assert model["optimizer"].items() >= optimizer.items()
    assert model["lr_scheduler"].items() >= {"name": "cosine", "warmup_epochs": 10.0}.items()
    assert model["backbone_args"] == {"drop_rate": 0.28, "grad_checkpointing": True}
    assert model["fine_tuning"]["frozen_stages"] == 2
    assert (data["batch_size"], config["trainer"]["accumulate_grad_batches"]) == (2, 4)
    assert (config["trainer"]["max_epochs"], config["early_stopping"]["patience"]) == (100, 28)
    assert data["preprocess"]["clahe"] == 2.5
    assert data["balance"]["class_weights"] == "inverse"
    assert data["preprocess"]["size"] == (256 if "swinv2" in name else 224)


def test_mura_members_differ_in_how_they_are_trained() -> None:
    configs = [settings("mura", name) for name in "abc"]
    models = [config["model"]["init_args"] for config in configs]
    assert [model["optimizer"]["name"] for model in models] == ["adam", "sgd", "rmsprop"]
    assert [model["lr_scheduler"]["name"] for model in models] == ["cosine", "step", "cyclic"]
    assert [config["data"]["init_args"]["batch_size"] for config in configs] == [16, 32, 64]
    assert configs[0]["data"]["init_args"]["augment_args"] == {"upside_down": 0.5}  # flips


def sparse_training(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the sparse training callback."""
    last = config["trainer"]["callbacks"][-1]
    assert last["class_path"] == "callbacks.TwoStageSparseTraining"
    return dict(last["init_args"])


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3"])
def test_chest_members(variant: str) -> None:
    config = settings("chest_sparse", f"{variant}_ast25")
    model, preprocess = config["model"]["init_args"], config["data"]["init_args"]["preprocess"]
    assert model["backbone"].startswith(f"efficientnet_{variant}.")
    assert model["backbone_args"] == {"drop_rate": 0.3}
    optimizer = {"name": "adamw", "lr": 3e-4, "weight_decay": 0.01}  # of both stages
    assert model["optimizer"].items() >= optimizer.items()
    assert model["lr_scheduler"].items() >= {"name": "onecycle", "warmup_epochs": 6.0}.items()
    assert config["trainer"]["max_epochs"] == 80
    assert (preprocess["size"], preprocess["margin"]) == (260, 28)
    sparse = sparse_training(config)
    stages = {"density": 0.25, "dense_epochs": 60, "sparse_epochs": 20}
    assert sparse.items() >= stages.items()
    assert (sparse["recovery"]["lr"], sparse["recovery"]["lr_scheduler"]) == (5e-5, "cosine")


def test_a_control_differs_from_its_member_in_density_only() -> None:
    member, control = (settings("chest_sparse", f"b2_{name}") for name in ("ast25", "control"))
    densities = [sparse_training(config)["density"] for config in (member, control)]
    assert densities == [0.25, 1.0]
    assert _without_density(member) == _without_density(control)


def _without_density(config: dict[str, Any]) -> dict[str, Any]:
    """The config without density, folder and arguments."""
    callbacks = config["trainer"]["callbacks"]
    sparse = {**sparse_training(config), "density": None}
    trainer = {**config["trainer"], "callbacks": [*callbacks[:-1], sparse]}
    trainer.pop("default_root_dir")
    return {**config, "trainer": trainer, "run": None, "config": None}


def test_single_stage_training_has_no_dense_epochs() -> None:
    sparse = sparse_training(settings("chest_sparse", "b2_single10"))
    assert sparse.items() >= {"density": 0.1, "dense_epochs": 0, "sparse_epochs": 60}.items()


def test_the_original_single_stage_recipe_is_an_arm() -> None:
    config = settings("chest_sparse", "b0_single10")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert model["backbone"].startswith("efficientnet_b0.")
    assert model["backbone_args"] == {"drop_rate": 0.2}
    optimizer = {"name": "adam", "lr": 3e-4, "weight_decay": 0.0}
    assert model["optimizer"].items() >= optimizer.items()
    assert (data["preprocess"]["size"], config["trainer"]["max_epochs"]) == (224, 50)
    sparse = sparse_training(config)
    assert sparse.items() >= {"density": 0.1, "dense_epochs": 0, "sparse_epochs": 50}.items()
    assert sparse["density_schedule"]["ramp_fraction"] == 0  # from the first step on
    assert sparse["recovery"] == {"lr": 3e-4, "lr_scheduler": "cosine", "warmup_epochs": 0.0}
    new = settings("chest_sparse", "b2_ast25")["data"]["init_args"]
    assert (data["source"], data["class_names"]) == (new["source"], new["class_names"])


@pytest.mark.parametrize(("configuration", "epochs"), [("standard", 10), ("intensive", 15)])
def test_gradcam_members(configuration: str, epochs: int) -> None:
    names = [name for name in members("gradcam") if name.endswith(configuration)]
    assert len(names) == 5
    config = settings("gradcam", names[1])
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == epochs
    assert model["backbone"].startswith("densenet121.")
    assert (model["head"], model["fine_tuning"]["trainable_layers"]) == ("sigmoid", 20)
    assert model["optimizer"]["name"] == "adam"
    assert data["class_names"] == ["normal", "cardiomegaly"]
    assert data["source"]["init_args"]["root"] == "data/gradcam/cardiomegaly"


def test_gradcam_members_use_500_images_per_class_of_all_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("normal", 620), ("pneumonia", 480)):
        folder = Path("data/gradcam/pneumonia") / name
        folder.mkdir(parents=True)
        for k in range(count):
            (folder / f"{k}.png").touch()
    table = data_config.load_datamodule([str(CONFIGS / "data/gradcam.yaml")]).load_manifest().table
    assert table["label"].value_counts().to_dict() == {0: 500, 1: 480}
    fractions = table["split"].value_counts(normalize=True)
    for split, fraction in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        assert fractions[split] == pytest.approx(fraction, abs=0.04)


SHIPPED = sorted(file.stem for file in (CONFIGS / "experiments").glob("*.yaml"))
FAST = ["demo", "fracture", "mura_synthetic", "saliency_phantom", "sparse_phantom"]


@pytest.mark.parametrize("experiment", exhaustive_except(FAST, SHIPPED))
def test_every_shipped_experiment_is_valid_and_prints_a_command_per_run(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = CONFIGS / f"experiments/{experiment}.yaml"
    assert main(["experiment", "run", str(file), "--dry-run"]) == 0, capsys.readouterr().err
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plan(load_experiment(file), Path("runs")))
    assert {line.split()[1] for line in lines} <= {"fit", "ensemble", "test", "explain"}


@pytest.mark.parametrize(
    ("experiment", "runs"),
    [("fracture", 4 + 3), ("fundus", 7 + 4), ("mura", 3 + 2), ("mura_pretrained", 3 + 2),
     ("chest_sparse", 2 * (7 + 5)), ("chest_ensemble", 5 + 3), ("gradcam", 10 + 10),
     ("demo", 3 + 3)],
)  # fmt: skip
def test_the_number_of_runs_of_each_experiment(experiment: str, runs: int) -> None:
    config = load_experiment(CONFIGS / f"experiments/{experiment}.yaml")
    assert len(plan(config, Path("runs"))) == runs


def write_experiment(tiny: Tiny, folder: Path, **content: object) -> Path:
    """An experiment file of two members with the base config."""
    file = folder / "wrong.yaml"
    tiny.member("right")
    base = {
        "base": str(ROOT / "configs/base.yaml"),
        "members": {"a": str(tiny.root / "right.yaml")},
    }
    file.write_text(yaml.safe_dump({**base, **content}))
    return file


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry-run"])
@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"model.init_args.backbon": "x"}, "backbon", "backbone"),
        ({"data.init_args.batch_sise": 4}, "batch_sise", "batch_size"),
        ({"trainer.max_epoch": 3}, "max_epoch", "max_epochs"),
    ],
    ids=["model", "data", "trainer"],
)
def test_a_wrong_key_of_a_member_is_one_line_before_anything_is_trained(
    changes: dict[str, object],
    key: str,
    nearest: str,
    options: list[str],
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = str(tiny.member("wrong_member", **changes))
    right = str(tiny.member("right"))
    file = write_experiment(tiny, tmp_path, members={"a": right, "b": wrong})
    out = str(tmp_path / "out")
    start = time.monotonic()
    assert main(["experiment", "run", str(file), "--output", out, *options]) == 2
    assert time.monotonic() - start < 10
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "wrong_member.yaml" in error
    assert key in error
    assert re.search(f"did you mean '([\\w.]+[.])?{nearest}'", error)
    assert not Path(out).exists()


def test_a_wrong_key_in_the_overrides_names_the_experiment_file(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_experiment(tiny, tmp_path, overrides={"model.init_args.backbon": "x"})
    assert main(["experiment", "run", str(file), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "wrong.yaml" in error
    assert "did you mean 'backbone'?" in error


def test_members_of_several_seeds_are_parsed_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed: list[str] = []

    def record(args: list[str], files: object) -> Namespace:
        parsed.append(args[0])
        settings = Namespace(trainer=Namespace(precision="32-true"), model=Namespace())
        return Namespace({args[0]: settings})

    monkeypatch.setattr("consilium.training.lightning_cli.validate_config", record)
    ensemble = {"model": {"class_path": "lightning_modules.EnsembleModule"}}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(ensemble))
    file = write_experiment(
        tiny, tmp_path, seeds=list(range(12)), folds=3, ensemble="ensemble.yaml"
    )
    assert main(["experiment", "run", str(file), "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12 * 3 * 3
    assert parsed == ["fit", "test"]
