"""The published values of the five systems are claims of their experiments."""

import pytest

from consilium.experiments.config import load_experiment
from tests.conftest import ROOT

EXPERIMENTS = ROOT / "configs/experiments"
CLAIMED: dict[str, dict[str, float | tuple[float, float]]] = {
    "fracture": {
        "convnextv2_base.val/accuracy": 0.9987, "convnextv2_base.accuracy": 0.99578,
        "tf_efficientnetv2_s.val/accuracy": 0.9974, "tf_efficientnetv2_s.accuracy": 0.99578,
        "maxvit_tiny.val/accuracy": 0.9994, "maxvit_tiny.accuracy": 0.99805,
        "swin_tiny.val/accuracy": 0.9997, "swin_tiny.accuracy": 0.99903,
        "ensemble.accuracy": 0.99935, "ensemble.precision_macro": 0.9994,
        "ensemble.recall_macro": 0.99935, "ensemble.f1_macro": 0.99937,
        "ensemble.auroc": 0.9999998, "ensemble.learned/accuracy": (0.997, 0.999),
        "ensemble.agreement": (0.95, 0.98), "ensemble.training_minutes": 80,
    },
    "fundus": {
        "densenet121.accuracy": 0.987, "efficientnet_b2.accuracy": 0.9851,
        "resnet50.accuracy": 0.9796, "seresnext50.accuracy": 0.9543, "coatnet_0.accuracy": 0.98,
        "convnext_tiny.accuracy": 0.98, "swinv2_tiny.accuracy": 0.97,
        "ensemble-old_4.accuracy": 0.9765, "ensemble-old_4.recall/1": 0.96,
        "ensemble-old_4.auroc": 0.9977, "ensemble-all_7.accuracy": 0.985,
        "ensemble-all_7.recall/1": 0.98, "ensemble-all_7.auroc": 0.998,
    },
    "mura": {"ensemble.accuracy": 0.8226, "ensemble.kappa": 0.6415},
    "mura_pretrained": {"members.study/kappa": 0.705},
    "chest_sparse": {
        "b2_ast25.accuracy": (0.93, 0.97), "b2_ast25.weights_zero_fraction": (0.7, 0.75),
        "b2_ast25.density": (0.2, 0.3), "b0_single10.accuracy": 0.877,
    },
    "gradcam": {"members.accuracy": 0.85, "members.training_minutes": (8, 18)},
}  # fmt: skip
GATES = {
    "fundus": {
        "members.accuracy": 0.97, "members.pair/*": 0.9, "ensemble-all_7.accuracy": 0.985,
        "ensemble-all_7.auroc": 0.998, "ensemble-all_7.recall/*": 0.95,
        "ensemble-all_7.recall/1": 0.98,
    },
    "gradcam": {"members.accuracy": 0.85},
}  # fmt: skip


@pytest.mark.parametrize("experiment", CLAIMED)
def test_every_published_value_is_a_claim(experiment: str) -> None:
    claims = load_experiment(EXPERIMENTS / f"{experiment}.yaml").claims
    assert {n: c.claimed for n, c in claims.items() if c.claimed is not None} == CLAIMED[experiment]


@pytest.mark.parametrize("experiment", GATES)
def test_every_published_requirement_is_a_gate(experiment: str) -> None:
    assert load_experiment(EXPERIMENTS / f"{experiment}.yaml").gates == GATES[experiment]
