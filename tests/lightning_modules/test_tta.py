"""Test-time augmentation: geometry, averaging, refused names, and its note in every result."""

import pytest
import torch

from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules.tta import affine, augmentation, mean_logits


def test_two_flips_restore_the_image():
    image = torch.rand(2, 3, 5, 7)
    for name in ("hflip", "vflip"):
        assert torch.equal(augmentation(name)(augmentation(name)(image)), image)
        assert not torch.equal(augmentation(name)(image), image)


def test_neutral_affine_changes_nothing():
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(affine(image, 0.0, 1.0), image)


def test_quarter_turn_and_zoom_by_two_match_geometry():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 2:4, 2:4] = 1
    rotated = affine(image, torch.pi / 2, 1.0)
    torch.testing.assert_close(rotated, torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)
    center = torch.zeros(1, 1, 16, 16)
    center[0, 0, 6:10, 6:10] = 1
    enlarged = augmentation("zoom:2")(center).sum().item()
    assert enlarged == pytest.approx(4 * center.sum().item(), rel=0.15)


def test_logits_are_averaged_and_all_views_are_augmented():
    images = {"a": torch.rand(2, 1, 4, 4), "b": torch.rand(2, 1, 8, 8)}

    def predict(views):
        return torch.stack([views["a"][:, 0, 0, 0], views["b"][:, 0, 0, -1]], 1)

    flipped = {view: tensor.flip(-1) for view, tensor in images.items()}
    expected = (predict(images) + predict(flipped)) / 2
    torch.testing.assert_close(mean_logits(predict, images, ["hflip"]), expected)
    assert torch.equal(mean_logits(predict, images, []), predict(images))


@pytest.mark.parametrize("name", ["flip", "rotate", "rotate:x", "rotate:90", "zoom:9", "hflip:2"])
def test_an_unknown_augmentation_is_refused(name):
    with pytest.raises(ValueError, match=f"tta: '{name}' is not one of hflip"):
        augmentation(name)


def test_the_command_line_option_is_noted_in_every_result(resnet, tmp_path, capsys):
    args = ["test", "--config", str(resnet / "config.yaml"), "--run", str(tmp_path)]
    args += ["--ckpt_path", str(resnet / "best.ckpt"), "--tta", "[hflip]"]
    assert main(args) == 0
    plain, augmented = (PredictionTable.read(run / "predictions/test.parquet")
                        for run in (resnet, tmp_path))  # fmt: skip
    assert augmented.meta["tta"] == ["hflip"]
    assert plain.meta["tta"] == []
    assert abs(plain.logits - augmented.logits).max() > 1e-4
    assert read_results(tmp_path / "results.json").meta["tta"] == ["hflip"]
    note = "test-time augmentation: mean logits of the image and of hflip"
    assert capsys.readouterr().out.count(note) == 1
    assert read_results(tmp_path / "results.json").meta["notes"] == [note]
    assert note in (tmp_path / "report.html").read_text()
    assert note not in (resnet / "report.html").read_text()
