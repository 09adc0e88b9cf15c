"""Heads: number of outputs, logits and loss of each, and a head of a user."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional

from lightning_modules import ImageClassifier, OneVsOneClassifier
from lightning_modules.heads import HEADS, Head, create_head
from lightning_modules.losses import CrossEntropyLoss, FocalLoss


@pytest.mark.parametrize(("name", "outputs"), [("softmax", 4), ("ordinal", 3), ("one_vs_one", 6)])
def test_outputs_become_one_logit_per_class(name: str, outputs: int) -> None:
    head = create_head(name, list("abcd"), CrossEntropyLoss())
    assert head.num_outputs == outputs
    logits = head.logits(torch.randn(5, outputs))
    assert logits.shape == (5, 4)
    assert torch.allclose(logits.softmax(1).sum(1), torch.ones(5))


def test_a_sigmoid_head_learns_by_binary_cross_entropy() -> None:
    head = create_head("sigmoid", ["no", "yes"], CrossEntropyLoss())
    z, label = torch.randn(6, 1), torch.arange(6) % 2
    assert head.num_outputs == 1
    expected = functional.binary_cross_entropy_with_logits(z[:, 0], label.float())
    assert torch.allclose(head.loss(z, label, None), expected)


def test_an_ordinal_head_of_two_classes_is_the_sigmoid_head() -> None:
    ordinal, sigmoid = (create_head(h, ["no", "yes"], FocalLoss()) for h in ("ordinal", "sigmoid"))
    z, label = torch.randn(50, 1) * 10, torch.arange(50) % 2
    assert torch.equal(ordinal.logits(z), sigmoid.logits(z))
    weights = torch.tensor([0.5, 1.5])
    assert torch.equal(ordinal.loss(z, label, weights), sigmoid.loss(z, label, weights))


def test_an_ordinal_head_is_a_sequence_of_binary_decisions() -> None:
    head, z = create_head("ordinal", list("0123"), CrossEntropyLoss()), torch.randn(20, 3).double()
    p = head.logits(z).softmax(dim=1)
    passed = torch.sigmoid(z + torch.tensor([3.0, 2.0, 1.0]).log())  # grade k, if at least k
    above = torch.stack([p[:, k + 1 :].sum(dim=1) for k in range(3)], dim=1)
    assert torch.allclose(above, passed.cumprod(dim=1))
    label = torch.arange(20) % 4
    is_asked = label[:, None] >= torch.arange(3)
    terms = functional.binary_cross_entropy(
        passed, (label[:, None] > torch.arange(3)).double(), reduction="none"
    )
    expected = (terms * is_asked).sum(dim=1).mean()
    assert torch.allclose(head.loss(z, label, None), expected.float())


@pytest.mark.parametrize(
    ("name", "classes"), [("softmax", 4), ("sigmoid", 2), ("ordinal", 2), ("ordinal", 5)]
)
def test_outputs_follow_from_logits_up_to_a_constant(name: str, classes: int) -> None:
    head = create_head(name, list("abcde")[:classes], CrossEntropyLoss())
    outputs = torch.randn(30, head.num_outputs) * 3
    logits = head.logits(outputs)
    assert torch.allclose(head.outputs(logits), outputs, atol=1e-5)
    if head.num_outputs < classes:
        assert torch.allclose(head.outputs(logits.log_softmax(dim=1)), outputs, atol=1e-5)


@pytest.mark.parametrize("backbone", [*timm.list_models("test_*"), "residual_attention"])
def test_a_pretrained_network_starts_with_equally_likely_classes(
    backbone: str, tmp_path: Path
) -> None:
    pretrained = weight_file(backbone, tmp_path)
    module = ImageClassifier(["a", "b", "c"], backbone, image_size=64, pretrained=pretrained)
    image, label = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    loss = module.compute_loss(module.net(image), label, None)
    assert loss.item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("build", "class_names"),
    [
        (partial(ImageClassifier, head="sigmoid"), ["no", "yes"]),
        (partial(ImageClassifier, head="ordinal"), ["no", "yes"]),
        (OneVsOneClassifier, ["a", "b", "c"]),
        (partial(OneVsOneClassifier, trunks="pair"), ["a", "b", "c"]),
    ],
    ids=["sigmoid", "ordinal", "pairs", "trunk per pair"],
)
def test_binary_heads_of_a_pretrained_network_start_at_even_odds(
    build: Callable[..., ImageClassifier], class_names: list[str], tmp_path: Path
) -> None:
    pretrained = weight_file("test_efficientnet", tmp_path)
    module = build(class_names, "test_efficientnet", pretrained=pretrained)
    image, label = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    loss = module.compute_loss(module.net(image), label, None)
    assert loss.item() == pytest.approx(math.log(2))
    probabilities = module(image).softmax(1)
    assert torch.allclose(probabilities, torch.full_like(probabilities, 1 / probabilities.shape[1]))


def test_an_ordinal_head_that_starts_at_zero_has_equally_likely_classes() -> None:
    logits = create_head("ordinal", list("01234"), CrossEntropyLoss()).logits(torch.zeros(2, 4))
    assert torch.allclose(logits.softmax(dim=1), torch.full((2, 5), 0.2))


def test_the_head_of_a_network_from_scratch_is_random() -> None:
    assert ImageClassifier(["a", "b"], "test_resnet").net.get_parameter("fc.weight").any()


def weight_file(backbone: str, folder: Path) -> str:
    """Weights of a network with seven classes, so that its head is of no use."""
    torch.save(timm.create_model(backbone, num_classes=7).state_dict(), folder / "weights.pth")
    return str(folder / "weights.pth")


def test_a_sigmoid_head_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="head: sigmoid is for two classes, not"):
        ImageClassifier(["a", "b", "c"], "test_resnet", head="sigmoid")


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match="head: 'softmx' is not one of softmax, sigmoid"):
        ImageClassifier(["a", "b"], "test_resnet", head="softmx")


def test_pair_heads_refuse_mixed_labels() -> None:
    head = create_head("one_vs_one", ["a", "b", "c"], CrossEntropyLoss())
    with pytest.raises(ValueError, match="mixup cannot be combined"):
        head.loss(torch.randn(2, 3), torch.full((2, 3), 1 / 3), None)


def test_every_output_has_a_gradient_even_if_its_pair_has_no_image() -> None:
    head = create_head("one_vs_one", ["a", "b", "c"], CrossEntropyLoss())
    outputs = [torch.randn(2, 1, requires_grad=True) for _ in range(3)]
    head.loss(torch.cat(outputs, dim=1), torch.tensor([0, 0]), None).backward()
    assert all(output.grad is not None for output in outputs)
    assert not outputs[2].grad.any()  # the pair of the two classes without images


class TemperatureHead(Head):
    """Softmax head with halved logits."""

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs / 2


def test_a_registered_head_is_selected_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "temperature", TemperatureHead)
    module = ImageClassifier(["a", "b", "c"], "test_resnet", head="temperature").eval()
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(module(image), module.net(image) / 2)


@pytest.mark.parametrize(
    "loss", [CrossEntropyLoss(0.1), CrossEntropyLoss(pos_weight=3.0), FocalLoss()]
)
@pytest.mark.parametrize("weights", [None, [0.5, 1.5]])
def test_a_multi_label_head_of_one_finding_is_the_sigmoid_head(
    loss: FocalLoss, weights: list[float] | None
) -> None:
    multi, sigmoid = (
        create_head("multi_label", ["yes"], loss),
        create_head("sigmoid", ["no", "yes"], loss),
    )
    first, second = ((torch.randn(50, 1, generator=torch.Generator().manual_seed(0)) * 5)
                     .requires_grad_() for _ in range(2))  # fmt: skip
    label = torch.arange(50) % 2
    one = multi.loss(first, label[:, None], weights and torch.tensor([weights]))
    two = sigmoid.loss(second, label, weights and torch.tensor(weights))
    one.backward()
    two.backward()
    assert torch.equal(one, two)
    assert torch.equal(first.grad, second.grad)
    assert torch.equal(torch.sigmoid(multi.logits(first)), torch.sigmoid(second))


def test_a_multi_label_head_averages_the_known_labels() -> None:
    head, z = create_head("multi_label", list("abc"), CrossEntropyLoss()), torch.randn(20, 3)
    label = torch.randint(-1, 2, (20, 3))
    weights = torch.tensor([[1.0, 2.0], [0.5, 0.5], [3.0, 1.0]])
    terms = functional.binary_cross_entropy_with_logits(
        z, label.clamp_min(0).float(), reduction="none"
    )
    terms = terms * torch.where(label == 1, weights[:, 1], weights[:, 0])
    assert torch.allclose(head.loss(z, label, weights), terms[label >= 0].mean())
    z.requires_grad_()
    torch.autograd.backward(head.loss(z, label, weights))
    assert torch.equal(z.grad == 0, label < 0)  # nothing is learned from an unknown label
    nothing = head.loss(z, torch.full((20, 3), -1), weights)
    assert nothing.item() == 0
    assert nothing.requires_grad
    with pytest.raises(ValueError, match="mixup cannot be combined"):
        head.loss(z, torch.rand(20, 3), None)


def test_no_other_module_asks_for_a_head_by_name() -> None:
    folder = Path(__file__).parents[2]
    files = [f for name in ("lightning_modules", "callbacks", "consilium", "evaluation")
             for f in (folder / name).rglob("*.py") if f.name != "heads.py"]  # fmt: skip
    named = [f.name for f in files if "head_name ==" in f.read_text() or "Head)" in f.read_text()]
    assert named == []
