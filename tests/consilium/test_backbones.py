"""The command that lists backbones."""

import pytest

from consilium.cli.main import run


def test_one_row_per_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backbones", "test_resnet", "--image-size", "64"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "test_resnet" in line]
    assert row.split()[:6] == ["test_resnet", "0.4", "M", "0.02", "G", "64"]
    assert "apache-2.0" in row
    assert "layer2 8x8" in row


def test_non_commercial_licenses_are_marked_and_can_be_excluded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(["backbones", "convnextv2_atto.*"])
    assert "(not commercial)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no backbone matches 'convnextv2_atto"):
        run(["backbones", "convnextv2_atto.*", "--commercial-only"])


def test_pattern_without_match_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no backbone matches 'resnet5O'; .*resnet50"):
        run(["backbones", "resnet5O"])
