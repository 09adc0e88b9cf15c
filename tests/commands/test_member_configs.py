"""The members of the five systems: short files that say what the systems' authors set."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from main import main

CONFIGS = Path(__file__).parents[2] / "configs"
MEMBERS = [
    file
    for system in ("fracture", "fundus", "mura", "chest", "gradcam")
    for file in sorted((CONFIGS / system).glob("*.yaml"))
    if "council" not in file.stem
]
FRACTURE = {"optimizer": "adam", "lr": 1e-4, "schedule": "plateau"}
FUNDUS = {
    **{"optimizer": "adamw", "lr": 5e-5, "weight_decay": 2.5e-4},
    **{"schedule": "cosine", "warmup_epochs": 10.0},
}


def resolved(file: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    base = ["--config", str(CONFIGS / "base.yaml"), "--config", str(file)]
    with pytest.raises(SystemExit):
        main(["fit", *base, "--print_config"])
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("file", MEMBERS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_member_resolves_and_keeps_the_callbacks(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = resolved(file, capsys)
    names = {callback["class_path"] for callback in said["trainer"]["callbacks"]}
    assert {"callbacks.Record", "callbacks.Predictions"} <= names
    assert len(file.read_text().splitlines()) <= 12


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
    said = resolved(CONFIGS / f"fracture/{name}.yaml", capsys)
    model, data = said["model"]["init_args"], said["data"]["init_args"]
    assert (model["backbone"], model["pretrained"], data["batch_size"]) == (backbone, True, batch)
    assert model["optimisation"].items() >= FRACTURE.items()
    assert (said["trainer"]["max_epochs"], said["early_stopping"]["patience"]) == (30, 5)
    assert data["preprocess"]["size"] == 224


FUNDUS_MEMBERS = [file for file in MEMBERS if file.parent.name == "fundus"]


@pytest.mark.parametrize("file", FUNDUS_MEMBERS, ids=lambda file: file.stem)
def test_fundus_members(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = resolved(file, capsys)
    model, data = said["model"]["init_args"], said["data"]["init_args"]
    assert said["model"]["class_path"] == "lightning_modules.OneVsOneClassifier"
    assert model["loss"].items() >= {"gamma": 3.0, "alpha": 2.5, "smoothing": 0.1}.items()
    assert model["optimisation"].items() >= FUNDUS.items()
    assert model["backbone_args"] == {"drop_rate": 0.28, "grad_checkpointing": True}
    assert model["tuning"]["frozen_stages"] == 2
    assert (data["batch_size"], said["trainer"]["accumulate_grad_batches"]) == (2, 4)
    assert (said["trainer"]["max_epochs"], said["early_stopping"]["patience"]) == (100, 28)
    assert data["preprocess"]["clahe"] == 2.5
    assert data["preprocess"]["size"] == (256 if "swinv2" in file.stem else 224)


def test_mura_members_differ_in_how_they_are_trained(capsys: pytest.CaptureFixture[str]) -> None:
    said = [resolved(CONFIGS / f"mura/{name}.yaml", capsys) for name in "abc"]
    ways = [one["model"]["init_args"]["optimisation"] for one in said]
    assert [way["optimizer"] for way in ways] == ["adam", "sgd", "rmsprop"]
    assert [way["schedule"] for way in ways] == ["cosine", "step", "cyclic"]
    assert [one["data"]["init_args"]["batch_size"] for one in said] == [16, 32, 64]


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3"])
def test_chest_members(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = resolved(CONFIGS / f"chest/{variant}_dense.yaml", capsys)
    model, preprocess = said["model"]["init_args"], said["data"]["init_args"]["preprocess"]
    assert model["backbone"].startswith(f"efficientnet_{variant}.")
    assert model["backbone_args"] == {"drop_rate": 0.3}
    way = {"optimizer": "adamw", "lr": 3e-4, "schedule": "onecycle", "warmup_epochs": 6.0}
    assert model["optimisation"].items() >= way.items()
    assert said["trainer"]["max_epochs"] == 60
    assert (preprocess["size"], preprocess["margin"]) == (260, 28)


@pytest.mark.parametrize(("kind", "epochs"), [("standard", 10), ("intensive", 15)])
def test_gradcam_members(kind: str, epochs: int, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((CONFIGS / "gradcam").glob(f"*_{kind}.yaml"))
    assert len(files) == 5
    said = resolved(files[0], capsys)
    model = said["model"]["init_args"]
    assert said["trainer"]["max_epochs"] == epochs
    assert (model["head"], model["tuning"]["trainable_layers"]) == ("sigmoid", 20)
    assert model["optimisation"]["optimizer"] == "adam"


@pytest.mark.parametrize(
    ("study", "members"),
    [("fracture", 4), ("fundus", 7), ("fundus_4", 4), ("mura", 3), ("gradcam", 10)],
)
def test_each_study_prints_a_fit_a_member(
    study: str, members: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "run", str(CONFIGS / f"studies/{study}.yaml"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("consilium fit") for line in lines) == members
