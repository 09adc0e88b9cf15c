"""Config files give the same dataset to every command."""

from pathlib import Path

import pytest

from consilium.cli.main import main
from consilium.inference.data_config import load_datamodule, sample_rows
from datamodules.sources import Folders, Mura, Source, Table

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("data/*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_data_config_builds_its_source(config):
    assert isinstance(load_datamodule([str(config)]).source, Source)


@pytest.mark.parametrize(
    ("config", "source_class", "root"),
    [
        ("fracture/swin_tiny", Folders, "data/fracture"),
        ("mura/a", Mura, "data/MURA-v1.1"),
        ("data/pneumonia_cxr", Table, "data/pneumonia_cxr"),
    ],
)
def test_a_reference_in_a_config_is_relative_to_its_file(config, source_class, root):
    source = load_datamodule([str(CONFIGS / f"{config}.yaml")]).source
    assert isinstance(source, source_class)
    assert source.root == Path(root)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("data: {class_path: datamodules.ImageDataModule, init_args: {sourse: 1}}",
         "'sourse' is not accepted"),
        ("data: {class_path: datamodules.ImageDataModule, init_args: {source: gone.yaml}}",
         "gone.yaml: no such config"),
        ("data: {class_path: [1, 2\nmodel: x",
         "data.yaml, line 2, column 6: invalid YAML: expected"),
        ("- data", "data.yaml: a list, not a mapping"),
        ("model: {}", "data.yaml: "),
    ],
)  # fmt: skip
def test_an_error_in_a_config_is_one_line(data, message, tmp_path, capsys):
    (tmp_path / "data.yaml").write_text(data)
    assert main(["audit", "--config", str(tmp_path / "data.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_sampled_rows_are_spread_over_the_split(resnet):
    manifest = load_datamodule([str(resnet / "config.yaml")]).load_manifest()
    ids = manifest.table[manifest.table["split"] == "test"]["id"].tolist()
    assert sample_rows(manifest, "test", 2)["id"].tolist() == [ids[0], ids[-1]]
    assert sample_rows(manifest, "test", 10_000)["id"].tolist() == ids
