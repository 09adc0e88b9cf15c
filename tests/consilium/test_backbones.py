"""The list of backbones, as a person asks for it."""

import pytest

from consilium.cli.backbones import run


def test_one_row_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["test_resnet", "--image_size", "64"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "test_resnet" in line]
    assert row.split()[:6] == ["test_resnet", "0.4", "M", "0.02", "G", "64"]
    assert "apache-2.0" in row
    assert "layer2 8x8" in row


def test_licenses_that_forbid_are_marked_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    run(["convnextv2_atto.*"])
    assert "(not commercial)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nothing matches 'convnextv2_atto"):
        run(["convnextv2_atto.*", "--commercial_only"])


def test_nothing_found_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"nothing matches 'resnet5O'; .*resnet50"):
        run(["resnet5O"])
