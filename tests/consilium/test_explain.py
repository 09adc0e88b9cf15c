"""consilium explain: maps are registered to the image's pixels, and files describe predictions."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from consilium.cli.main import main
from consilium.inference.predictor import Member, Predictor, load_predictor
from datamodules.preprocess import Preprocess
from evaluation.predictions import PredictionTable
from evaluation.voters.learned import Learned
from evaluation.voters.simple import Weighted
from evaluation.voters.store import FittedEnsemble
from lightning_modules.cam import Explanation
from lightning_modules.checkpoints import read
from lightning_modules.ensemble import load_ensemble
from tests.consilium.untrained import CLASSES, write_ensemble


class PeakExplainer:
    """Returns a map with one peak, at a place in the coordinates of the network's input."""

    def __init__(self, x, y, size, cells):
        self.x, self.y, self.size, self.cells = x, y, size, cells

    def __call__(self, images, classes=None):
        cell = self.size / self.cells
        coarse = np.zeros((self.cells, self.cells), np.float32)
        coarse[int(self.y / cell), int(self.x / cell)] = 1
        maps = cv2.resize(coarse, (self.size, self.size))[None]
        return Explanation(maps, np.array([1]), np.zeros((1, 3)))


@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480)])
@pytest.mark.parametrize("position", [(0.3, 0.6), (0.55, 0.35), (0.7, 0.7)])
@pytest.mark.parametrize("cells", [7, 14, 28])
def test_peak_of_a_map_is_at_its_pixel_in_the_original_image(fit, height, width, position, cells):
    x, y = position[0] * width, position[1] * height
    explainer = PeakExplainer(*input_position(fit, height, width, x, y), 224, cells)
    view = Preprocess(size=224, fit=fit)
    member = Member("m", "w", view, [0, 1, 2], explainer=explainer)
    ensemble = FittedEnsemble(Weighted(np.ones(1)), ["w"], CLASSES)
    predictor = Predictor([member], ensemble, torch.device("cpu"))
    saliency_map = predictor.explain(np.zeros((height, width), np.uint8), 1).saliency_map
    assert saliency_map.shape == (height, width)
    peak = np.argwhere(saliency_map > saliency_map.max() - 1e-6).mean(axis=0)
    scale = {"squash": (width / 224, height / 224)}.get(fit)
    scale = scale or 2 * ((640 if fit == "letterbox" else 480) / 224,)
    assert abs(peak[1] - x) <= 224 / cells * scale[0]
    assert abs(peak[0] - y) <= 224 / cells * scale[1]


def input_position(fit, height, width, x, y):
    """Position of a pixel in the network's input, by the definition of each fit."""
    if fit == "squash":
        return x * 224 / width, y * 224 / height
    scale = 224 / (max(height, width) if fit == "letterbox" else min(height, width))
    return (x - width / 2) * scale + 112, (y - height / 2) * scale + 112


@pytest.fixture(scope="module")
def image_paths(tiny, resnet):
    folder = next((tiny.root / "phantoms").glob("fracture-*"))
    return [str(path) for path in sorted(folder.glob("*/*.png"))[:3]]


def best_checkpoints(*runs):
    return [run / "best.ckpt" for run in runs]


def explain_json(folder):
    return json.loads((folder / "explain.json").read_text())


def test_maps_and_panels_of_one_checkpoint(resnet, image_paths, tmp_path, capsys):
    assert main(["explain", str(resnet / "best.ckpt"), *image_paths, "-o", str(tmp_path)]) == 0
    assert "3 images explained" in capsys.readouterr().out
    content = explain_json(tmp_path)
    assert content["members"]["resnet"]["layers"] == ["layer1"]
    for path, row in zip(image_paths, content["images"], strict=True):
        saliency_map = np.load(tmp_path / f"{row['name']}.npy")
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        assert saliency_map.shape == image.shape == (row["height"], row["width"])
        assert saliency_map.dtype == np.float32
        assert cv2.imread(str(tmp_path / f"{row['name']}.png")).shape[:2] == image.shape
        assert (tmp_path / f"{row['name']}.panel.png").stat().st_size > 5000
        most_probable = CLASSES[int(np.argmax(row["probabilities"]))]
        assert row["explained_class"] == row["class"] == most_probable
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert row["probability"] == max(row["probabilities"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".npy", ".json"}


def test_no_file_replaces_an_image_or_another_file(resnet, image_paths, tmp_path, capsys):
    own = tmp_path / "own"
    own.mkdir()
    images = [own / "q.png", own / "q-panel.png", own / "q.panel.png"]
    for path, image in zip(image_paths, images, strict=True):
        image.write_bytes(Path(path).read_bytes())
    before = {image: image.read_bytes() for image in images}
    command = ["explain", str(resnet), *map(str, images)]
    assert main([*command, "-o", str(own)]) == 2
    assert "q.png is one of the images; name another" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in own.iterdir()} == before
    assert main([*command, "-o", str(tmp_path / "maps")]) == 0
    stems = [row["name"] for row in explain_json(tmp_path / "maps")["images"]]
    expected = {f"{s}.{end}" for s in stems for end in ("png", "npy", "panel.png")}
    files = {file.name for file in (tmp_path / "maps").iterdir()}
    assert files == {"explain.json", *expected}
    assert len(expected) == 9


def test_probabilities_of_a_split_are_those_of_its_prediction_table(resnet, tmp_path):
    table = PredictionTable.read(resnet / "predictions" / "test.parquet")
    limited = ["-o", str(tmp_path), "--split", "test", "--limit", "4"]
    assert main(["explain", str(resnet), *limited]) == 0
    rows = explain_json(tmp_path)["images"]
    ids = list(table.rows["id"])
    positions = [
        next(i for i, name in enumerate(ids) if row["path"].endswith(name)) for row in rows
    ]
    # evenly spaced over the split: a folder may be sorted by class
    assert positions == np.linspace(0, len(ids) - 1, 4).round().tolist()
    for row, position in zip(rows, positions, strict=True):
        np.testing.assert_allclose(row["probabilities"], table.probabilities[position], atol=1e-5)


def test_option_class_explains_another_class_than_the_predicted_one(resnet, image_paths, tmp_path):
    names = ("simple", "comminuted")
    for name in names:
        main(["explain", str(resnet), image_paths[0], "-o", str(tmp_path / name), "--class", name])
    first, second = (explain_json(tmp_path / name)["images"][0] for name in names)
    assert (first["explained_class"], second["explained_class"]) == names
    assert first["class"] == second["class"]
    maps = [np.load(tmp_path / name / f"{first['name']}.npy") for name in names]
    assert np.abs(maps[0] - maps[1]).max() > 0.05


def test_map_of_an_ensemble_is_the_weighted_mean_of_its_members(
    resnet, larger, image_paths, tmp_path
):
    hashes = [read(run / "best.ckpt")[0].weights for run in (resnet, larger)]
    fitted = FittedEnsemble(Weighted(np.array([3, 1])), hashes, CLASSES)
    folder, files = tmp_path / "ensemble", best_checkpoints(resnet, larger)
    write_ensemble(folder, files, fitted, voter_folder=folder / "voters" / "weighted")
    assert main(["explain", str(folder), image_paths[0], "-o", str(tmp_path / "out")]) == 0
    row = explain_json(tmp_path / "out")["images"][0]
    members = list(row["members"].values())
    maps = np.load(tmp_path / "out" / f"{row['name']}.members.npy")
    mean_map = np.load(tmp_path / "out" / f"{row['name']}.npy")
    np.testing.assert_allclose(mean_map, 0.75 * maps[0] + 0.25 * maps[1], atol=1e-6)
    first, second = (np.array(member["probabilities"]) for member in members)
    np.testing.assert_allclose(row["probabilities"], 0.75 * first + 0.25 * second, atol=1e-6)
    assert [member["weight"] for member in members] == [0.75, 0.25]


def test_an_ensemble_predicts_in_the_precision_of_its_evaluation(resnet, larger, tmp_path):
    folder, files = tmp_path / "ensemble", best_checkpoints(resnet, larger)
    hashes = [read(run / "best.ckpt")[0].weights for run in (resnet, larger)]
    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    explanations = {}
    for precision in ("", "32-true", "bf16-mixed"):
        fitted = FittedEnsemble(Weighted(np.ones(2)), hashes, CLASSES, precision=precision)
        write_ensemble(folder, files, fitted)
        predictor = load_predictor(folder)
        explanations[precision] = predictor.explain(image, 1)
        predicted = predictor.predict(image)
        np.testing.assert_allclose(explanations[precision].probabilities, predicted[-1], atol=1e-6)
        inputs = predictor.preprocess(image)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            members = [m.predict(inputs[m.preprocess.name][None])[0] for m in predictor.members]
        np.testing.assert_array_equal(predicted[:-1], members)
    full, mixed = explanations["32-true"], explanations["bf16-mixed"]
    np.testing.assert_array_equal(explanations[""].probabilities, full.probabilities)
    assert 0 < np.abs(full.probabilities - mixed.probabilities).max() < 0.05
    np.testing.assert_array_equal(full.member_maps, mixed.member_maps)
    fitted = FittedEnsemble(Weighted(np.ones(2)), hashes, CLASSES, precision="16-true")
    write_ensemble(folder, files, fitted)
    with pytest.warns(UserWarning, match="evaluated in precision 16-true, predictions are in 32"):
        load_predictor(folder)


def test_ensemble_without_its_voter_or_with_other_members_is_refused(resnet, larger, tmp_path):
    checkpoints = best_checkpoints(resnet, larger)
    hashes = [read(file)[0].weights for file in checkpoints]
    voter = FittedEnsemble(Learned(np.ones(2)), hashes, CLASSES)
    folder = write_ensemble(tmp_path / "ensemble", checkpoints, voter)
    (folder / "voter.json").unlink()
    with pytest.raises(ValueError, match=r"no voter.json of its voter 'learned' in"):
        load_ensemble(folder)
    file = write_ensemble(tmp_path / "other", checkpoints) / "ensemble.json"
    assert load_ensemble(file).member_names == ("resnet", "larger")
    member = file.read_text().replace(f"{resnet.name}/best.ckpt", f"{larger.name}/best.ckpt")
    file.write_text(member)
    with pytest.raises(ValueError, match="member 'resnet' has other weights"):
        load_ensemble(file)


def test_invalid_arguments_are_errors_of_one_line(resnet, image_paths, tmp_path, capsys):
    image, split = image_paths[0], ["--split", "test"]
    for arguments, message in (
        ([image, "--class", "broken"], "'broken' is not one of none, simple, comminuted"),
        ([], "give either IMAGE... or --split"),
        ([image, "--method", "Grad"], "method: 'Grad' is not one of GradCAM"),
        (["nowhere.png"], "1 of 1 images cannot be read: nowhere.png: "),
        ([image, "--limit", "1"], "--limit: needs --split; IMAGE... are single files"),
        ([image, "--limit", "1", "--config", "no.yaml"], "--config --limit: needs --split"),
        ([*split, "--measure", "--class", "none"], "--class none: --measure takes the class"),
        ([*split, "--measure", "--group", "wrist"], "--group wrist: --measure takes the class"),
    ):
        assert main(["explain", str(resnet), *arguments, "-o", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_readable_images_are_explained_although_one_is_corrupt(
    resnet, image_paths, tmp_path, capsys
):
    corrupt = tmp_path / "corrupt.csv"
    corrupt.write_text("path\n")
    paths = [image_paths[0], str(corrupt), image_paths[1]]
    assert main(["explain", str(resnet), *paths, "-o", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert "2 images explained" in output.out
    assert f"1 of 3 images cannot be read: {corrupt}: " in output.err
    assert output.err.count("\n") == 1
    rows = explain_json(tmp_path / "out")["images"]
    assert [row["path"] for row in rows] == image_paths[:2]


@pytest.mark.parametrize("command", ["explain", "serve", "prune"])
def test_unknown_device_is_an_error_of_one_line(command, resnet, capsys):
    with pytest.raises(SystemExit):
        main([command, str(resnet), "--device", "gpu"])
    assert "--device: 'gpu' is not one of auto, cpu" in capsys.readouterr().err


def test_dicom_image_is_explained_as_png(resnet, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.preamble = bytes(128)
    path = tmp_path / "CT_small.dcm"
    dataset.save_as(path)
    assert main(["explain", str(resnet), str(path), "-o", str(tmp_path)]) == 0
    assert cv2.imread(str(tmp_path / "CT_small.png")).shape == (128, 128, 3)


def test_run_folder_is_loaded_by_its_best_checkpoint(resnet):
    hashes = {
        load_predictor(path).members[0].weights_hash
        for path in (resnet, Path(resnet) / "best.ckpt")
    }
    assert len(hashes) == 1
