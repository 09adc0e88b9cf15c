"""The members of the five systems, as their studies train them: what the systems' authors set."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from consilium.cli.main import main
from consilium.experiments.config import read_study
from consilium.experiments.plan import plan
from consilium.experiments.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"
FIVE = ("fracture", "fundus", "mura", "mura_pretrained", "chest_sparse", "gradcam")
FRACTURE = {"optimizer": "adam", "lr": 1e-4, "schedule": "plateau"}
FUNDUS = {
    **{"optimizer": "adamw", "lr": 5e-5, "weight_decay": 2.5e-4},
    **{"schedule": "cosine", "warmup_epochs": 10.0},
}


def members(study: str) -> dict[str, Run]:
    """The runs that fit a member, by name."""
    runs = plan(read_study(CONFIGS / f"studies/{study}.yaml"), Path("runs"))
    return {run.name: run for run in runs if run.arguments[0] == "fit"}


EVERY = [(study, name) for study in FIVE for name in members(study)]


def resolved(study: str, name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        main([*members(study)[name].arguments, "--print_config"])
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(("study", "name"), EVERY, ids=map("/".join, EVERY))
def test_member_resolves_and_keeps_the_callbacks(
    study: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = resolved(study, name, capsys)
    names = {callback["class_path"] for callback in said["trainer"]["callbacks"]}
    assert {"callbacks.ResultsWriter", "callbacks.PredictionWriter"} <= names
    assert said["model"]["init_args"]["pretrained"] is ("residual" not in str(said["model"]))


@pytest.mark.parametrize("where", ["ddp", "gpu", "torchrun"])
def test_where_to_train_changes_nothing_of_how_long(
    where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    member = members("fundus")["resnet50"].arguments
    with pytest.raises(SystemExit):
        main([*member, "--trainer", str(CONFIGS / f"trainer/{where}.yaml"), "--print_config"])
    said = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert (said["accelerator"], said["max_epochs"]) == ("gpu", 100)
    assert said["accumulate_grad_batches"] == 4


@pytest.mark.parametrize(
    ("name", "backbone", "batch"),
    [
        ("convnextv2_base", "convnextv2_base.fcmae_ft_in22k_in1k", 16),
        ("tf_efficientnetv2_s", "tf_efficientnetv2_s.in21k_ft_in1k", 32),
        ("maxvit_tiny", "maxvit_tiny_tf_224.in1k", 24),
        ("swin_tiny", "swin_tiny_patch4_window7_224.ms_in22k_ft_in1k", 32),
    ],
)
def test_fracture_members(
    name: str, backbone: str, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    said = resolved("fracture", name, capsys)
    model, data = said["model"]["init_args"], said["data"]["init_args"]
    assert (model["backbone"], model["pretrained"], data["batch_size"]) == (backbone, True, batch)
    assert model["optimization"].items() >= FRACTURE.items()
    assert (said["trainer"]["max_epochs"], said["early_stopping"]["patience"]) == (30, 5)
    assert (data["preprocess"]["size"], data["augment"]) == (224, "fracture")


@pytest.mark.parametrize("name", members("fundus"))
def test_fundus_members(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = resolved("fundus", name, capsys)
    model, data = said["model"]["init_args"], said["data"]["init_args"]
    assert said["model"]["class_path"] == "lightning_modules.OneVsOneClassifier"
    assert model["loss"].items() >= {"gamma": 3.0, "alpha": 2.5, "smoothing": 0.1}.items()
    assert model["optimization"].items() >= FUNDUS.items()
    assert model["backbone_args"] == {"drop_rate": 0.28, "grad_checkpointing": True}
    assert model["tuning"]["frozen_stages"] == 2
    assert (data["batch_size"], said["trainer"]["accumulate_grad_batches"]) == (2, 4)
    assert (said["trainer"]["max_epochs"], said["early_stopping"]["patience"]) == (100, 28)
    assert data["preprocess"]["clahe"] == 2.5
    assert data["balance"]["class_weights"] == "inverse"
    assert data["preprocess"]["size"] == (256 if "swinv2" in name else 224)


def test_mura_members_differ_in_how_they_are_trained(capsys: pytest.CaptureFixture[str]) -> None:
    said = [resolved("mura", name, capsys) for name in "abc"]
    ways = [one["model"]["init_args"]["optimization"] for one in said]
    assert [way["optimizer"] for way in ways] == ["adam", "sgd", "rmsprop"]
    assert [way["schedule"] for way in ways] == ["cosine", "step", "cyclic"]
    assert [one["data"]["init_args"]["batch_size"] for one in said] == [16, 32, 64]


def sparse(said: dict[str, Any]) -> dict[str, Any]:
    """The settings of the sparse training."""
    last = said["trainer"]["callbacks"][-1]
    assert last["class_path"] == "callbacks.TwoStageSparseTraining"
    settings: dict[str, Any] = last["init_args"]
    return settings


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3"])
def test_chest_members(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = resolved("chest_sparse", f"{variant}_ast25", capsys)
    model, preprocess = said["model"]["init_args"], said["data"]["init_args"]["preprocess"]
    assert model["backbone"].startswith(f"efficientnet_{variant}.")
    assert model["backbone_args"] == {"drop_rate": 0.3}
    way = {"optimizer": "adamw", "lr": 3e-4, "schedule": "onecycle", "warmup_epochs": 6.0}
    assert model["optimization"].items() >= way.items()
    assert said["trainer"]["max_epochs"] == 80
    assert (preprocess["size"], preprocess["margin"]) == (260, 28)
    stages = {"density": 0.25, "dense_epochs": 60, "sparse_epochs": 20}
    assert sparse(said).items() >= stages.items()
    assert (sparse(said)["recovery"]["lr"], sparse(said)["recovery"]["schedule"]) == (
        5e-5,
        "cosine",
    )


def test_a_control_differs_from_its_member_in_density_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    member, control = (resolved("chest_sparse", f"b2_{n}", capsys) for n in ("ast25", "control"))
    assert (sparse(member).pop("density"), sparse(control).pop("density")) == (0.25, 1.0)
    member.pop("run"), control.pop("run")
    assert member == control


def test_the_old_recipe_has_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    said = sparse(resolved("chest_sparse", "b2_single10", capsys))
    assert said.items() >= {"density": 0.1, "dense_epochs": 0, "sparse_epochs": 60}.items()


@pytest.mark.parametrize(("kind", "epochs"), [("standard", 10), ("intensive", 15)])
def test_gradcam_members(kind: str, epochs: int, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in members("gradcam") if name.endswith(kind)]
    assert len(names) == 5
    said = resolved("gradcam", names[1], capsys)
    model, data = said["model"]["init_args"], said["data"]["init_args"]
    assert said["trainer"]["max_epochs"] == epochs
    assert model["backbone"].startswith("densenet121.")
    assert (model["head"], model["tuning"]["trainable_layers"]) == ("sigmoid", 20)
    assert model["optimization"]["optimizer"] == "adam"
    assert data["class_names"] == ["normal", "cardiomegaly"]
    assert data["source"]["init_args"]["root"] == "data/gradcam/cardiomegaly"


@pytest.mark.parametrize(
    ("study", "runs"),
    [("fracture", 4 + 3), ("fundus", 7 + 4), ("mura", 3 + 2), ("mura_pretrained", 3 + 2),
     ("chest_sparse", 6 + 4), ("gradcam", 10 + 10), ("demo", 3 + 3)],
)  # fmt: skip
def test_each_study_prints_a_line_a_run(
    study: str, runs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "run", str(CONFIGS / f"studies/{study}.yaml"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == runs
    assert {line.split()[1] for line in lines} <= {"fit", "ensemble", "test", "explain"}
