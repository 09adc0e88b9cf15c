"""What a person names as a data set is read as training reads it."""

from pathlib import Path

import pytest

from consilium.cli.main import main
from consilium.inference.data_config import load_datamodule
from datamodules.sources import Folders, Mura, Source, Table

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("data/*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_data_config_builds_its_source(config):
    assert isinstance(load_datamodule([str(config)]).source, Source)


@pytest.mark.parametrize(
    ("config", "kind", "root"),
    [
        ("fracture/swin_tiny", Folders, "data/fracture"),
        ("mura/a", Mura, "data/MURA-v1.1"),
        ("data/pneumonia_cxr", Table, "data/pneumonia_cxr"),
    ],
)
def test_a_config_within_a_config_is_found_from_its_own_file(config, kind, root):
    source = load_datamodule([str(CONFIGS / f"{config}.yaml")]).source
    assert isinstance(source, kind)
    assert source.root == Path(root)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("data: {class_path: datamodules.ImageDataModule, init_args: {sourse: 1}}",
         "'sourse' is not accepted"),
        ("data: {class_path: datamodules.ImageDataModule, init_args: {source: gone.yaml}}",
         "gone.yaml: no such config"),
        ("data: {class_path: [1, 2\nmodel: x", "data.yaml, line 2, column 6: no YAML: expected"),
        ("- data", "data.yaml: a list, not a mapping"),
        ("model: {}", "data.yaml: "),
    ],
)  # fmt: skip
def test_a_wrong_config_is_one_line(data, words, tmp_path, capsys):
    (tmp_path / "data.yaml").write_text(data)
    assert main(["audit", "--config", str(tmp_path / "data.yaml")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
