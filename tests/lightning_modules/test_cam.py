"""Maps of every backbone and head, held against gradients computed by hand."""

import gc

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_modules import ImageClassifier, OneVsOneClassifier
from lightning_modules.cam import METHODS, Explainer, cam_layers, log_odds
from lightning_modules.model_info import KNOWN

CLASSES = ["a", "b", "c", "d", "e", "f"]


SWIN = "swin_tiny_patch4_window7_224"


def bare(name: str) -> str:
    return name.split(".")[0]


def hooks_of(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


def by_hand(module: ImageClassifier, image: Tensor, at: int) -> np.ndarray:
    """Grad-CAM as defined, of the log-odds in one image, through the whole network."""
    (layer,) = cam_layers(module.net, image.shape[-1])
    kept: list[Tensor] = []
    hook = module.net.get_submodule(layer.name).register_forward_hook(
        lambda _, __, output: (output.retain_grad(), kept.append(output))[0]
    )
    scores = module(image)
    hook.remove()
    log_odds(scores)[0, at].backward()
    maps, gradient = layer.maps(kept[0])[0], layer.maps(kept[0].grad)[0]
    found = (gradient.mean(dim=(1, 2))[:, None, None] * maps).sum(dim=0).clamp_min(0)
    side = image.shape[-1]
    return scaled(cv2.resize(scaled(found.detach().numpy()), (side, side)))


def scaled(found: np.ndarray) -> np.ndarray:
    above = found - found.min()
    return np.asarray(above / above.max())


@pytest.mark.parametrize("name", KNOWN, ids=bare)
def test_every_backbone_is_explained_and_left_alone(name: str) -> None:
    torch.manual_seed(1)
    module = ImageClassifier(CLASSES, name, image_size=64)
    with torch.no_grad():
        module.net.get_classifier().weight.normal_(std=0.05)  # no class is sure
    first = next(module.parameters())
    first.grad = gradient = torch.ones_like(first)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = Explainer(module, 64)(torch.randn(1, 3, 64, 64).expand(6, -1, -1, -1), range(6))
    maps = found.maps
    assert maps.shape == (6, 64, 64)
    assert found.logits.shape == (6, 6)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() == pytest.approx(1, abs=1e-5)
    lit = maps[maps.std(axis=(1, 2)) > 0.05]  # against some class everything may speak
    assert len(lit) >= 2
    assert all(np.abs(a - b).max() > 0.05 for i, a in enumerate(lit) for b in lit[:i])
    assert hooks_of(module) == 0
    assert all(each.training for each in module.net.modules())
    assert all(p.requires_grad for p in module.net.parameters())
    assert first.grad is gradient
    assert bool((first.grad == 1).all())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 64), ("test_convnext", 64), ("test_vit", 160)]
)
def test_gradcam_is_what_its_definition_says(name: str, size: int) -> None:
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, name, image_size=size).eval()
    image = torch.randn(1, 3, size, size)
    maps = Explainer(module, size)(image.expand(6, -1, -1, -1), range(6)).maps
    lit = [k for k in range(6) if maps[k].any()]
    assert lit
    for k in lit:
        np.testing.assert_allclose(maps[k], by_hand(module, image, k), atol=1e-3)


def test_swin_is_read_with_its_channels_last() -> None:
    torch.manual_seed(0)
    small = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    module = ImageClassifier(CLASSES, SWIN, image_size=128, backbone_args=small).eval()
    image = torch.randn(1, 3, 128, 128)
    found = Explainer(module, 128)(image)
    by_definition = by_hand(module, image, int(found.classes[0]))
    np.testing.assert_allclose(found.maps[0], by_definition, atol=1e-3)


def test_without_a_question_the_answer_is_explained() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64).eval()
    images = torch.randn(3, 3, 64, 64)
    explain = Explainer(module, 64)
    answered = explain(images)
    with torch.no_grad():
        logits = module(images).numpy()
    np.testing.assert_allclose(answered.logits, logits, atol=1e-5)
    assert answered.classes.tolist() == logits.argmax(axis=1).tolist()
    asked = explain(images, answered.classes.tolist())
    np.testing.assert_array_equal(asked.maps, answered.maps)


def test_a_sigmoid_speaks_for_both_of_its_classes() -> None:
    torch.manual_seed(3)
    module = ImageClassifier(["no", "yes"], "test_resnet", image_size=64, head="sigmoid").eval()
    image = torch.randn(1, 3, 64, 64)
    maps = Explainer(module, 64)(image.expand(2, -1, -1, -1), [0, 1]).maps
    assert maps.any(axis=(1, 2)).any()
    for k in (0, 1):
        if maps[k].any():
            np.testing.assert_allclose(maps[k], by_hand(module, image, k), atol=1e-3)
    assert np.abs(maps[0] - maps[1]).max() > 0.5


@pytest.mark.parametrize("sure", [1.0, 12.0])
def test_pairs_are_explained_by_the_coupled_class(sure: float) -> None:
    torch.manual_seed(0)
    module = OneVsOneClassifier(CLASSES[:4], "test_resnet", image_size=64).eval()
    with torch.no_grad():
        module.net.get_classifier().bias.copy_(torch.tensor([sure, sure, sure, 0, 0, 0]))
    image = torch.randn(1, 3, 64, 64)
    found = Explainer(module, 64)(image.expand(4, -1, -1, -1), range(4))
    assert found.logits[0].argmax() == 0
    assert found.maps.any(axis=(1, 2)).sum() >= 2
    for k in np.flatnonzero(found.maps.any(axis=(1, 2))):
        np.testing.assert_allclose(found.maps[k], by_hand(module, image, k), atol=0.02)


def test_a_trunk_for_each_pair_is_explained_by_all_of_them() -> None:
    torch.manual_seed(0)
    module = OneVsOneClassifier(CLASSES[:3], "test_resnet", image_size=64, trunks="pair")
    names = [layer.name for layer in cam_layers(module.net, 64)]
    assert names == ["trunks.0.layer2", "trunks.1.layer2", "trunks.2.layer2"]
    found = Explainer(module, 64)(torch.randn(2, 3, 64, 64))
    assert found.maps.shape == (2, 64, 64)
    assert found.maps.any(axis=(1, 2)).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map_and_keeps_quiet(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64)
    found = Explainer(module, 64, method)(torch.randn(2, 3, 64, 64))
    assert found.maps.shape == (2, 64, 64)
    assert found.maps.std(axis=(1, 2)).min() > 0.01
    assert found.logits.shape == (2, 6)
    assert hooks_of(module) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_maxvit", "resnet10t"])
def test_recomputing_of_stages_hides_nothing_and_stays_on(name: str) -> None:
    torch.manual_seed(0)
    again = ImageClassifier(
        CLASSES, name, image_size=64, backbone_args={"grad_checkpointing": True}
    )
    plain = ImageClassifier(CLASSES, name, image_size=64)
    plain.load_state_dict(again.state_dict())
    images = torch.randn(2, 3, 64, 64)
    on = [m for m in again.net.modules() if getattr(m, "grad_checkpointing", False)]
    maps = Explainer(again, 64)(images).maps
    np.testing.assert_allclose(maps, Explainer(plain, 64)(images).maps, atol=1e-5)
    assert on
    assert on == [m for m in again.net.modules() if getattr(m, "grad_checkpointing", False)]


def test_nothing_is_left_in_memory_after_200_images() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    explain = Explainer(module, 32)
    image = torch.randn(1, 3, 32, 32)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    explain(image)
    before = tensors()
    for _ in range(200):
        explain(image)
    assert tensors() <= before


def test_an_error_on_the_way_leaves_no_hook() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64)
    explain = Explainer(module, 64)
    with pytest.raises(RuntimeError):
        explain(torch.randn(1, 5, 64, 64))
    assert hooks_of(module) == 0
    assert module.net.training
    assert all(p.requires_grad for p in module.net.parameters())


def test_it_works_where_lightning_switches_gradients_off() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64)
    explain = Explainer(module, 64)
    with torch.inference_mode():
        images = torch.randn(2, 3, 64, 64)
        inside = explain(images).maps
    np.testing.assert_array_equal(inside, explain(images.clone()).maps)


def test_wrong_questions_are_named() -> None:
    module = ImageClassifier(CLASSES, "test_resnet", image_size=64)
    with pytest.raises(ValueError, match="method: 'gradcam' is not one of GradCAM, GradCAM"):
        Explainer(module, 64, "gradcam")
    with pytest.raises(ValueError, match=r"classes: \[6\] for 1 images; one an image, 0 to 5"):
        Explainer(module, 64)(torch.randn(1, 3, 64, 64), [6])
    module.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    with pytest.raises(ValueError, match="Sequential has no layer with maps"):
        Explainer(module, 2)


def test_log_odds_by_hand() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(log_odds(p.log()), (p / (1 - p)).log())
