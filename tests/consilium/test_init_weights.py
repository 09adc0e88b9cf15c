"""What `init` proposes for pretrained weights and a time, and that it runs as it is."""

from pathlib import Path

import pytest

from consilium.inference.starter_plan import Candidate, backbone_of_file, plan_members, time_image
from datamodules.preprocess import Preprocess


def candidate(name: str, seconds: float) -> Candidate:
    return Candidate(name, Path(f"{name}.safetensors"), Preprocess(), seconds)


FAST, SLOW = candidate("test_resnet", 0.005), candidate("resnet50", 0.05)


def planned(minutes: float, *candidates: Candidate) -> dict[str, int]:
    return {m.name: m.epochs for m in plan_members(candidates, 1000, 400, minutes)}


def test_all_weights_are_probed_and_the_largest_are_fine_tuned_in_the_time_that_remains():
    assert planned(60, SLOW, FAST) == {"test_resnet_probe": 0, "resnet50_probe": 0,
                                       "resnet50": 10, "test_resnet": 10}  # fmt: skip
    assert planned(15, SLOW, FAST) == {"test_resnet_probe": 0, "resnet50_probe": 0, "resnet50": 3}
    assert planned(4, SLOW, FAST) == {"test_resnet_probe": 0, "test_resnet": 8}


@pytest.mark.parametrize("minutes", [1, 3, 8, 15, 40])
def test_the_plan_fits_into_the_time(minutes):
    members = plan_members([SLOW, FAST], 1000, 400, minutes)
    assert members
    assert sum(m.minutes for m in members) <= minutes
    assert all(m.epochs == 0 or m.epochs >= 3 for m in members)


def test_one_probe_is_proposed_if_the_time_is_too_short_for_anything():
    assert planned(0.1, SLOW, FAST) == {"test_resnet_probe": 0}


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("resnet50", "resnet50"), ("resnet50.a1_in1k", "resnet50.a1_in1k"),
     ("mobilenetv2_100_tf2ptq", "mobilenetv2_100")],
)  # fmt: skip
def test_the_network_is_the_one_that_the_name_of_the_file_begins_with(name, backbone):
    assert backbone_of_file(Path(f"{name}.safetensors")) == backbone


def test_images_that_cannot_be_read_do_not_prevent_a_plan():
    assert time_image("test_resnet", Preprocess(size=32), ["nowhere.png"]) > 0


def test_a_file_of_another_name_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"--weights mine\.pth: its name does not begin with"):
        backbone_of_file(Path("mine.pth"))
