import numpy as np
import pytest

from consilium.cli.main import run
from datamodules.cache import FEATURES, FeatureStore


@pytest.fixture
def config(tmp_path):
    (tmp_path / "data.yaml").write_text(
        "class_path: datamodules.ImageDataModule\n"
        "init_args:\n"
        "  source:\n"
        "    class_path: datamodules.Phantoms\n"
        f"    init_args: {{num_patients: 20, images_per_patient: 1, root: {tmp_path}/phantoms}}\n"
        "  class_names: [none, simple, comminuted]\n"
        "  preprocess: {size: 32}\n"
    )
    return str(tmp_path / "data.yaml")


def test_a_store_is_built_listed_and_deleted(config, tmp_path, capsys):
    root = ["--root", str(tmp_path / "cache")]
    assert run(["cache", "build", "--config", config, *root]) == 0
    output = capsys.readouterr().out
    assert "20 images in" in output
    assert "training split: mean [0." in output
    assert run(["cache", "info", *root]) == 0
    assert "1 stores" in capsys.readouterr().out
    assert run(["cache", "clear", *root]) == 0
    assert "1 stores deleted" in capsys.readouterr().out
    run(["cache", "info", *root])
    assert "0 stores" in capsys.readouterr().out


def test_a_missing_folder_is_an_error_with_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"--root .*nowhere: no such folder"):
        run(["cache", "info", "--root", str(tmp_path / "nowhere")])


def test_stores_of_features_are_listed_and_deleted_without_foreign_files(tmp_path, capsys):
    folder = tmp_path / f"{FEATURES}{'0a' * 12}"
    FeatureStore(folder).add(["first", "second"], np.ones((2, 5)))
    (folder / "notes.txt").write_text("mine")
    assert run(["cache", "info", "--root", str(tmp_path)]) == 0
    assert f"{folder.name}         2 images" in capsys.readouterr().out
    assert run(["cache", "clear", "--root", str(tmp_path)]) == 0
    assert f"{folder}: kept, since it contains other files" in capsys.readouterr().out
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
