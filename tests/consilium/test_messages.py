"""Invalid input ends in one line that names the value, what is allowed and where it stands."""

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from consilium.cli.main import main
from datamodules import Table
from datamodules.samplers import Balance
from lightning_modules import EnsembleModule
from lightning_modules.ensemble import find_members
from tests.conftest import ROOT

CLASSES = ["none", "simple", "comminuted"]
EMPTY_ENSEMBLE = {"class_path": "lightning_modules.EnsembleModule", "init_args": {"members": []}}


def refusal(capsys, *arguments):
    """The line that a command prints when it refuses its input."""
    assert main([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_an_ensemble_without_members_is_refused(tiny, tmp_path, capsys):
    config = tiny.configs("without-members", model=EMPTY_ENSEMBLE)
    message = "members: is empty; name checkpoints or run folders"
    assert message in refusal(capsys, "test", *config, "--run", tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        EnsembleModule(CLASSES, [])


def test_an_ensemble_is_not_trained(tiny, tmp_path, capsys):
    config = tiny.configs("trained-ensemble", model=EMPTY_ENSEMBLE)
    line = refusal(capsys, "fit", *config, "--run", tmp_path / "run")
    assert "model: an ensemble is not trained: fit its members, then test it" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "config.yaml: the file is empty"),
     (b"# nothing\n", "config.yaml: the file is empty"),
     (bytes(range(256)), "config.yaml: not YAML in UTF-8: 'utf-8' codec can't decode"),
     (b"\0\0", "config.yaml: not YAML in UTF-8: unacceptable character")],
)  # fmt: skip
def test_a_config_file_without_settings_is_refused_by_name(content, message, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    assert message in refusal(
        capsys, "fit", "--config", ROOT / "configs/base.yaml", "--config", file
    )


def test_a_negative_seed_is_refused_by_name(tiny, tmp_path, capsys):
    arguments = ["--seed_everything", "-1", "--run", tmp_path / "run"]
    line = refusal(capsys, "fit", *tiny.configs("seeded"), *arguments)
    assert "--seed_everything -1: must be from 0 to 4294967295" in line


def test_a_missing_table_of_excluded_samples_is_refused_by_name(tiny, tmp_path, capsys):
    file = tmp_path / "nowhere.csv"
    config = tiny.configs("excluding", **{"data.init_args.exclude": str(file)})
    line = refusal(capsys, "fit", *config, "--run", tmp_path / "run")
    assert f"exclude: {file}: no such file" in line


def write_table(folder, **changes):
    """A table of 24 images, and the settings of its source."""
    numbers = range(24)
    for i in numbers:
        cv2.imwrite(str(folder / f"{i}.png"), np.full((40, 40), 10 * i, np.uint8))
    columns = {
        "path": [f"{i}.png" for i in numbers],
        "label": [CLASSES[i % 3] for i in numbers],
        "patient": [f"p{i}" for i in numbers],
        "split": ["train"] * 12 + ["val"] * 6 + ["test"] * 6,
    }
    file = folder / "table.parquet"
    pd.DataFrame({**columns, **changes}).to_parquet(file)
    arguments = {"files": str(file), "patient": "patient"}
    return {"data.init_args.source": {"class_path": "datamodules.Table", "init_args": arguments}}


def test_a_split_without_images_is_named_in_plain_words(tiny, tmp_path, capsys):
    config = tiny.configs("few-patients", **write_table(tmp_path, split=["train"] * 24))
    line = refusal(capsys, "fit", *config, "--run", tmp_path / "run")
    assert "the split 'val' that 'fit' needs has no images" in line


@pytest.mark.parametrize("values", ["text", "float"])
def test_labels_that_are_numbers_with_a_fraction_are_class_numbers(tiny, tmp_path, values):
    numbers = [float(i % 3) for i in range(24)]
    labels = list(map(str, numbers)) if values == "text" else numbers
    source = write_table(tmp_path, label=labels)["data.init_args.source"]["init_args"]
    manifest = Table(**source).manifest(CLASSES)
    assert manifest.table["label"].tolist() == [i % 3 for i in range(24)]


def test_rows_without_a_path_are_left_out_with_a_note(tmp_path):
    paths = [None, "", *(f"{i}.png" for i in range(2, 24))]
    source = write_table(tmp_path, path=paths)["data.init_args.source"]["init_args"]
    manifest = Table(**source).manifest(CLASSES)
    assert len(manifest.table) == 22
    assert "2 images have no path and are left out" in manifest.notes


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_images_of_one_pixel_a_side_are_explained(resnet, tmp_path, shape):
    file = tmp_path / "narrow.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 255, shape, np.uint8))
    assert main(["explain", str(resnet), str(file), "-o", str(tmp_path / "out")]) == 0
    assert np.load(next((tmp_path / "out").glob("*narrow.npy"))).shape == shape


def test_an_image_of_32_bits_is_refused_with_the_depths_that_are_allowed(resnet, tmp_path, capsys):
    file = tmp_path / "deep.tif"
    Image.fromarray(np.full((40, 40), 100_000, np.int32)).save(file)
    line = refusal(capsys, "explain", resnet, file, "-o", tmp_path / "out")
    assert "deep.tif: int32 pixels from 100000 to 100000; allowed are 8 or 16 bits" in line


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0, "a", None])
def test_class_weights_from_python_are_finite_numbers(weight):
    balance = Balance(class_weights=[weight, 1, 1])
    with pytest.raises(ValueError, match="give one finite value of at least 0 for each of"):
        balance.compute_class_weights(np.array([0, 1, 2]), CLASSES)


@pytest.mark.exhaustive
def test_members_may_have_commas_and_brackets_in_their_names(tiny, tmp_path):
    tiny.member("plain", **{"trainer.max_epochs": 1})
    tiny.member("pooled", model=EMPTY_ENSEMBLE)
    content = {"base": str(ROOT / "configs/base.yaml"), "ensemble": "pooled.yaml",
               "members": {"a,b": "plain.yaml", "c[1]*": "plain.yaml"}}  # fmt: skip
    file = tiny.root / "names.yaml"
    file.write_text(yaml.safe_dump(content))
    folder = tmp_path / "experiment"
    assert main(["experiment", "run", str(file), "--output", str(folder)]) == 0
    assert (folder / "ensemble" / "ensemble.json").is_file()


def test_a_member_is_found_by_its_name_before_it_is_a_pattern(tmp_path):
    for name in ("c[1]", "c1"):
        (tmp_path / name).mkdir()
    assert find_members([str(tmp_path / "c[1]")]) == [tmp_path / "c[1]" / "best.ckpt"]


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "x" * 300, "", "..", "a/b"])
def test_names_of_members_that_no_folder_can_have_are_refused(name, tiny, tmp_path, capsys):
    tiny.member("plain")
    file = tiny.root / "unnamed.yaml"
    file.write_text(yaml.safe_dump({"base": "plain.yaml", "members": {name: "plain.yaml"}}))
    line = refusal(capsys, "experiment", "run", file, "--dry-run", "--output", tmp_path / "out")
    assert "is not the name of a folder" in line
