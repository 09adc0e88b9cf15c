"""Saliency maps of every backbone and head, verified against gradients computed by hand."""

import gc

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_modules import ImageClassifier, OneVsOneClassifier
from lightning_modules.cam import METHODS, Explainer, cam_layers, log_odds
from lightning_modules.model_info import SHIPPED_BACKBONES
from tests.lightning_modules.families import one_per_family

CLASSES = ["a", "b", "c", "d", "e", "f"]


SWIN = "swin_tiny_patch4_window7_224"


def architecture(name: str) -> str:
    return name.split(".")[0]


def count_hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


def gradcam_by_hand(module: ImageClassifier, image: Tensor, target: int) -> np.ndarray:
    """Grad-CAM by its definition, of the log-odds of a class in one image."""
    (layer,) = cam_layers(module.net, image.shape[-1])
    outputs: list[Tensor] = []
    hook = module.net.get_submodule(layer.name).register_forward_hook(
        lambda _, __, output: (output.retain_grad(), outputs.append(output))[0]
    )
    scores = module(image)
    hook.remove()
    log_odds(scores)[0, target].backward()
    features = layer.feature_maps(outputs[0])[0]
    gradient = layer.feature_maps(outputs[0].grad)[0]
    weighted = (gradient.mean(dim=(1, 2))[:, None, None] * features).sum(dim=0).clamp_min(0)
    side = image.shape[-1]
    return scaled(cv2.resize(scaled(weighted.detach().numpy()), (side, side)))


def scaled(saliency: np.ndarray) -> np.ndarray:
    """Scaled to [0, 1]."""
    shifted = saliency - saliency.min()
    return np.asarray(shifted / shifted.max())


@pytest.mark.parametrize("name", one_per_family(SHIPPED_BACKBONES), ids=architecture)
def test_every_backbone_is_explained_without_being_changed(name: str) -> None:
    torch.manual_seed(1)
    module = ImageClassifier(CLASSES, name, image_size=64)
    with torch.no_grad():
        module.net.get_classifier().weight.normal_(std=0.05)  # no certain class
    first = next(module.parameters())
    first.grad = gradient = torch.ones_like(first)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    explanation = Explainer(module, 64)(torch.randn(1, 3, 64, 64).expand(6, -1, -1, -1), range(6))
    maps = explanation.maps
    assert maps.shape == (6, 64, 64)
    assert explanation.logits.shape == (6, 6)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() == pytest.approx(1, abs=1e-5)
    visible = maps[maps.std(axis=(1, 2)) > 0.05]  # a map may be empty
    assert len(visible) >= 2
    assert all(np.abs(a - b).max() > 0.05 for i, a in enumerate(visible) for b in visible[:i])
    assert count_hooks(module) == 0
    assert all(layer.training for layer in module.net.modules())
    assert all(p.requires_grad for p in module.net.parameters())
    assert first.grad is gradient
    assert bool((first.grad == 1).all())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 64), ("test_convnext", 64), ("test_vit", 160)]
)
def test_gradcam_equals_its_definition(name: str, size: int) -> None:
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, name, image_size=size).eval()
    image = torch.randn(1, 3, size, size)
    maps = Explainer(module, size)(image.expand(6, -1, -1, -1), range(6)).maps
    visible = [k for k in range(6) if maps[k].any()]
    assert visible
    for k in visible:
        np.testing.assert_allclose(maps[k], gradcam_by_hand(module, image, k), atol=1e-3)


def test_the_channels_last_output_of_swin_is_transposed() -> None:
    torch.manual_seed(0)
    small = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    module = ImageClassifier(CLASSES, SWIN, image_size=128, backbone_args=small).eval()
    image = torch.randn(1, 3, 128, 128)
    explanation = Explainer(module, 128)(image)
    expected = gradcam_by_hand(module, image, int(explanation.classes[0]))
    np.testing.assert_allclose(explanation.maps[0], expected, atol=1e-3)


def test_the_predicted_class_is_explained_by_default() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64).eval()
    images = torch.randn(3, 3, 64, 64)
    explain = Explainer(module, 64)
    by_default = explain(images)
    with torch.no_grad():
        logits = module(images).numpy()
    np.testing.assert_allclose(by_default.logits, logits, atol=1e-5)
    assert by_default.classes.tolist() == logits.argmax(axis=1).tolist()
    predicted = explain(images, by_default.classes.tolist())
    np.testing.assert_array_equal(predicted.maps, by_default.maps)


def test_a_sigmoid_head_explains_both_classes() -> None:
    torch.manual_seed(3)
    module = ImageClassifier(["no", "yes"], "test_resnet", image_size=64, head="sigmoid").eval()
    image = torch.randn(1, 3, 64, 64)
    maps = Explainer(module, 64)(image.expand(2, -1, -1, -1), [0, 1]).maps
    assert maps.any(axis=(1, 2)).any()
    for k in (0, 1):
        if maps[k].any():
            np.testing.assert_allclose(maps[k], gradcam_by_hand(module, image, k), atol=1e-3)
    assert np.abs(maps[0] - maps[1]).max() > 0.5


@pytest.mark.parametrize("logit", [1.0, 12.0])
def test_pair_heads_explain_the_coupled_class(logit: float) -> None:
    torch.manual_seed(0)
    module = OneVsOneClassifier(CLASSES[:4], "test_resnet", image_size=64).eval()
    with torch.no_grad():
        module.net.get_classifier().bias.copy_(torch.tensor([logit, logit, logit, 0, 0, 0]))
    image = torch.randn(1, 3, 64, 64)
    explanation = Explainer(module, 64)(image.expand(4, -1, -1, -1), range(4))
    assert explanation.logits[0].argmax() == 0
    assert explanation.maps.any(axis=(1, 2)).sum() >= 2
    for k in np.flatnonzero(explanation.maps.any(axis=(1, 2))):
        np.testing.assert_allclose(
            explanation.maps[k], gradcam_by_hand(module, image, k), atol=0.02
        )


def test_parallel_trunks_are_explained_together() -> None:
    torch.manual_seed(0)
    module = OneVsOneClassifier(CLASSES[:3], "test_resnet", image_size=64, trunks="pair")
    names = [layer.name for layer in cam_layers(module.net, 64)]
    assert names == ["trunks.0.layer2", "trunks.1.layer2", "trunks.2.layer2"]
    maps = Explainer(module, 64)(torch.randn(2, 3, 64, 64)).maps
    assert maps.shape == (2, 64, 64)
    assert maps.any(axis=(1, 2)).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map_and_prints_nothing(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64)
    explanation = Explainer(module, 64, method)(torch.randn(2, 3, 64, 64))
    assert explanation.maps.shape == (2, 64, 64)
    assert explanation.maps.std(axis=(1, 2)).min() > 0.01
    assert explanation.logits.shape == (2, 6)
    assert count_hooks(module) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_maxvit", "resnet10t"])
def test_grad_checkpointing_changes_no_map_and_stays_enabled(name: str) -> None:
    torch.manual_seed(0)
    checkpointed = ImageClassifier(
        CLASSES, name, image_size=64, backbone_args={"grad_checkpointing": True}
    )
    plain = ImageClassifier(CLASSES, name, image_size=64)
    plain.load_state_dict(checkpointed.state_dict())
    images = torch.randn(2, 3, 64, 64)
    enabled = [m for m in checkpointed.net.modules() if getattr(m, "grad_checkpointing", False)]
    maps = Explainer(checkpointed, 64)(images).maps
    np.testing.assert_allclose(maps, Explainer(plain, 64)(images).maps, atol=1e-5)
    assert enabled
    assert enabled == [
        m for m in checkpointed.net.modules() if getattr(m, "grad_checkpointing", False)
    ]


def test_no_tensor_stays_in_memory_after_200_images() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    explain = Explainer(module, 32)
    image = torch.randn(1, 3, 32, 32)

    def count_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(instance), Tensor) for instance in gc.get_objects())

    explain(image)
    before = count_tensors()
    for _ in range(200):
        explain(image)
    assert count_tensors() <= before


def test_an_error_leaves_no_hook_and_restores_the_modes() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64)
    explain = Explainer(module, 64)
    with pytest.raises(RuntimeError):
        explain(torch.randn(1, 5, 64, 64))
    assert count_hooks(module) == 0
    assert module.net.training
    assert all(p.requires_grad for p in module.net.parameters())


def test_it_works_in_inference_mode() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64)
    explain = Explainer(module, 64)
    with torch.inference_mode():
        images = torch.randn(2, 3, 64, 64)
        inside = explain(images).maps
    np.testing.assert_array_equal(inside, explain(images.clone()).maps)


def test_unknown_methods_and_classes_are_refused() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64)
    with pytest.raises(ValueError, match="method: 'gradcam' is not one of GradCAM, GradCAM"):
        Explainer(module, 64, "gradcam")
    with pytest.raises(
        ValueError, match=r"classes: \[6\] for 1 images; needs one per image, 0 to 5"
    ):
        Explainer(module, 64)(torch.randn(1, 3, 64, 64), [6])
    module.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    with pytest.raises(ValueError, match="Sequential has no layer with feature maps"):
        Explainer(module, 2)


def test_log_odds_equal_their_definition() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(log_odds(p.log()), (p / (1 - p)).log())
