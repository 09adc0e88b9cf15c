"""What `init` proposes for pretrained weights and a time, and that it runs as it is."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)

from consilium.inference import starter_plan
from consilium.inference.starter_plan import (
    Candidate,
    ImageSeconds,
    backbone_of_file,
    detect_normalization,
    find_candidates,
    measure_seconds,
    plan_members,
)
from datamodules.preprocess import Preprocess


def candidate(name: str, seconds: float, size: int = 224) -> Candidate:
    times = ImageSeconds(0.0, seconds, 6 * seconds)
    return Candidate(name, Path(f"{name}.safetensors"), Preprocess(size=size), times)


FAST, SLOW = candidate("test_resnet", 0.005), candidate("resnet50", 0.05)
LARGER = candidate("test_resnet", 0.015, 384)


def planned(minutes: float, *candidates: Candidate) -> dict[str, int]:
    return {m.name: m.epochs for m in plan_members(candidates, 1000, 400, minutes)}


def test_the_fastest_networks_are_fine_tuned_and_the_others_probed_in_the_time():
    assert planned(80, SLOW, FAST) == {"test_resnet_224": 10, "resnet50_224": 10}
    assert planned(25, SLOW, FAST) == {"test_resnet_224": 10, "resnet50_224": 3}
    assert planned(12, SLOW, FAST) == {"test_resnet_224": 10, "resnet50_224_probe": 0}
    assert planned(4, SLOW, FAST) == {"test_resnet_224": 6}


def test_all_networks_are_fine_tuned_before_one_gets_larger_inputs():
    assert planned(20, SLOW, FAST, LARGER) == {"test_resnet_224": 3, "resnet50_224": 3}
    assert planned(25, SLOW, FAST, LARGER) == {"test_resnet_384": 4, "resnet50_224": 3}


def test_a_network_has_the_largest_size_in_the_time():
    assert planned(60, FAST, LARGER) == {"test_resnet_384": 10}
    assert planned(1.5, FAST, LARGER) == {"test_resnet_224_probe": 0}


def test_networks_are_not_fine_tuned_on_few_images():
    assert [member.epochs for member in plan_members([FAST], 999, 100, 60)] == [0]
    assert [member.epochs for member in plan_members([FAST], 1000, 100, 60)] == [10]


@pytest.mark.parametrize("minutes", [1, 3, 8, 15, 40])
def test_the_plan_fits_into_the_time(minutes):
    members = plan_members([SLOW, FAST, LARGER], 1000, 400, minutes)
    assert members
    assert sum(m.minutes for m in members) <= minutes
    assert all(m.epochs == 0 or m.epochs >= 3 for m in members)


def test_one_probe_is_proposed_if_the_time_is_too_short_for_anything():
    assert planned(0.1, SLOW, FAST) == {"test_resnet_224_probe": 0}


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("resnet50", "resnet50"), ("resnet50.a1_in1k", "resnet50.a1_in1k"),
     ("mobilenetv2_100_tf2ptq", "mobilenetv2_100")],
)  # fmt: skip
def test_the_network_is_the_one_that_the_name_of_the_file_begins_with(name, backbone):
    assert backbone_of_file(Path(f"{name}.safetensors")) == backbone


@pytest.fixture
def weights(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "test_resnet.pth")
    return [tmp_path / "test_resnet.pth"]


def test_images_that_cannot_be_read_do_not_prevent_a_plan(weights):
    (candidate,) = find_candidates(weights, ["nowhere.png"])
    assert candidate.preprocess.size == 160
    assert 0 < candidate.seconds.forward < candidate.seconds.training


def test_preparation_costs_time_in_each_epoch():
    times = ImageSeconds(0.060, 0.0, 0.0)
    slow_files = Candidate("resnet50", Path("resnet50.pth"), Preprocess(), times)
    (probe,), (tuned,) = (plan_members([slow_files], n, 0, 60) for n in (999, 1000))
    assert probe.minutes == pytest.approx(0.5 + 1.2 * 0.999)
    assert (tuned.epochs, tuned.minutes) == (10, pytest.approx(0.5 + 1.2 + 10))


def test_other_programs_do_not_slow_the_measured_time(monkeypatch):
    samples, clock = random_images(0), iter(range(0, 10**9, 1000))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(starter_plan.time, "perf_counter", lambda: next(clock))
    times = measure_seconds("test_resnet", Preprocess(size=64), samples, decoding=0.25)
    assert 0.25 < times.preparation < 1
    assert times.training < 1


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((160, 160), [160]), ((190, 190), [160]), ((200, 300), [160, 224]), ((999, 999), [160, 256])],
)
def test_images_with_more_detail_are_proposed_at_a_larger_size(shape, sizes, weights, tmp_path):
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "image.png")
    candidates = find_candidates(weights, [str(tmp_path / "image.png")])
    assert [candidate.preprocess.size for candidate in candidates] == sizes


@pytest.mark.parametrize("mean", [IMAGENET_DEFAULT_MEAN, IMAGENET_INCEPTION_MEAN])
def test_the_normalization_is_the_one_that_the_weights_were_trained_with(mean):
    std = IMAGENET_DEFAULT_STD if mean is IMAGENET_DEFAULT_MEAN else IMAGENET_INCEPTION_STD
    trained = Preprocess(size=64, mean=mean, std=std)
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=2)
    pretraining, others = (random_images(seed) for seed in (0, 1))
    for _ in range(50):  # updates of the running statistics
        net.train()(torch.stack([trained(image) for image in pretraining]))
    published = Preprocess(size=64, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    assert detect_normalization(net, published, others) == trained
    assert net.training


def random_images(seed: int) -> list[np.ndarray]:
    """Smooth color images."""
    rng = np.random.default_rng(seed)
    return [cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (64, 64)) for _ in range(8)]


def test_without_batch_norms_or_images_the_published_normalization_stays():
    published = Preprocess(size=160)
    resnet, vit = (timm.create_model(name) for name in ("test_resnet", "test_vit"))
    assert detect_normalization(resnet, published, []) == published
    assert detect_normalization(vit, published, random_images(0)) == published


def test_a_file_of_another_name_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"--weights mine\.pth: its name does not begin with"):
        backbone_of_file(Path("mine.pth"))
