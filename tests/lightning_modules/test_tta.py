import pytest
import torch

from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules.tta import averaged, change, warped


def test_flips_undo_themselves():
    image = torch.rand(2, 3, 5, 7)
    for name in ("hflip", "vflip"):
        assert torch.equal(change(name)(change(name)(image)), image)
        assert not torch.equal(change(name)(image), image)


def test_a_neutral_warp_changes_nothing():
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(warped(image, 0.0, 1.0), image)


def test_a_quarter_turn_and_a_zoom_by_two_land_where_geometry_says():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 2:4, 2:4] = 1
    turned = warped(image, torch.pi / 2, 1.0)
    torch.testing.assert_close(turned, torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)
    middle = torch.zeros(1, 1, 16, 16)
    middle[0, 0, 6:10, 6:10] = 1
    enlarged = change("zoom:2")(middle).sum().item()
    assert enlarged == pytest.approx(4 * middle.sum().item(), rel=0.15)


def test_logits_are_averaged_and_views_change_together():
    image = {"a": torch.rand(2, 1, 4, 4), "b": torch.rand(2, 1, 8, 8)}

    def said(seen):
        return torch.stack([seen["a"][:, 0, 0, 0], seen["b"][:, 0, 0, -1]], 1)

    flipped = {view: pictures.flip(-1) for view, pictures in image.items()}
    expected = (said(image) + said(flipped)) / 2
    torch.testing.assert_close(averaged(said, image, ["hflip"]), expected)
    assert torch.equal(averaged(said, image, []), said(image))


@pytest.mark.parametrize("name", ["flip", "rotate", "rotate:x", "rotate:90", "zoom:9", "hflip:2"])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=f"tta: '{name}' is not one of hflip"):
        change(name)


def test_it_is_asked_for_at_the_command_line_and_said_everywhere(resnet, tmp_path, capsys):
    args = ["test", "--config", str(resnet / "config.yaml"), "--run", str(tmp_path)]
    args += ["--ckpt_path", str(resnet / "best.ckpt"), "--tta", "[hflip]"]
    assert main(args) == 0
    once, twice = (PredictionTable.read(run / "predictions/test.parquet")
                   for run in (resnet, tmp_path))  # fmt: skip
    assert twice.meta["tta"] == ["hflip"]
    assert once.meta["tta"] == []
    assert abs(once.logits - twice.logits).max() > 1e-4
    assert read_results(tmp_path / "results.json").meta["tta"] == ["hflip"]
    note = "2 looks at every picture, their logits averaged: as it is, hflip"
    assert capsys.readouterr().out.count(note) == 1
    assert read_results(tmp_path / "results.json").meta["notes"] == [note]
    assert note in (tmp_path / "report.html").read_text()
    assert note not in (resnet / "report.html").read_text()
