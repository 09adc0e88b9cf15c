"""Maps come back to the right pixel of the picture; files, panels and ensembles."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from consilium.cli.main import main
from consilium.inference.predictor import Member, Model, load
from datamodules.preprocess import Preprocess
from evaluation.voters.simple import Weighted
from evaluation.voters.store import FittedEnsemble, save
from lightning_modules.cam import Maps
from lightning_modules.checkpoints import read
from lightning_modules.ensemble import load_ensemble
from tests.consilium.saved import CLASSES, ensemble_of


class Planted:
    """An explainer whose map has one peak, in the network's own coordinates."""

    def __init__(self, x, y, size, cells):
        self.x, self.y, self.size, self.cells = x, y, size, cells

    def __call__(self, images, classes=None):
        cell = self.size / self.cells
        small = np.zeros((1, self.cells, self.cells), np.float32)
        small[0, int(self.y / cell), int(self.x / cell)] = 1
        maps = cv2.resize(small[0], (self.size, self.size))[None]
        return Maps(maps, np.array([1]), np.zeros((1, 3)))


@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480)])
@pytest.mark.parametrize("place", [(0.3, 0.6), (0.55, 0.35), (0.7, 0.7)])
@pytest.mark.parametrize("cells", [7, 14, 28])
def test_a_planted_peak_comes_back_to_its_pixel(fit, height, width, place, cells):
    x, y = place[0] * width, place[1] * height
    u, v = seen_at(fit, height, width, x, y)
    ensemble = FittedEnsemble(Weighted(np.ones(1)), ["w"], CLASSES)
    planted = Planted(u, v, 224, cells)
    member = Member("m", "w", Preprocess(size=224, fit=fit), [0, 1, 2], planted)
    model = Model([member], ensemble, torch.device("cpu"))
    found = model.look(np.zeros((height, width), np.uint8), 1).heat
    assert found.shape == (height, width)
    at = np.argwhere(found > found.max() - 1e-6).mean(axis=0)
    scale = {"squash": (width / 224, height / 224)}.get(fit)
    scale = scale or 2 * ((640 if fit == "letterbox" else 480) / 224,)
    assert abs(at[1] - x) <= 224 / cells * scale[0]
    assert abs(at[0] - y) <= 224 / cells * scale[1]


def seen_at(fit, height, width, x, y):
    """Where a pixel of the picture lands, from the definition of each fit."""
    if fit == "squash":
        return x * 224 / width, y * 224 / height
    whole = max(height, width) if fit == "letterbox" else min(height, width)
    scale = 224 / whole
    return (x - width / 2) * scale + 112, (y - height / 2) * scale + 112


@pytest.fixture(scope="module")
def films(tiny, resnet):
    folder = next((tiny.root / "phantoms").glob("fracture-*"))
    return [str(path) for path in sorted(folder.glob("*/*.png"))[:3]]


def bests(*runs):
    return [run / "best.ckpt" for run in runs]


def test_one_checkpoint(resnet, films, tmp_path, capsys):
    assert main(["explain", str(resnet / "best.ckpt"), *films, "-o", str(tmp_path)]) == 0
    assert "3 images explained" in capsys.readouterr().out
    said = json.loads((tmp_path / "explain.json").read_text())
    assert said["members"]["resnet"]["layers"] == ["layer1"]
    for film, row in zip(films, said["images"], strict=True):
        heat = np.load(tmp_path / f"{row['name']}.npy")
        picture = cv2.imread(film, cv2.IMREAD_GRAYSCALE)
        assert heat.shape == picture.shape == (row["height"], row["width"])
        assert heat.dtype == np.float32
        assert cv2.imread(str(tmp_path / f"{row['name']}.png")).shape[:2] == picture.shape
        assert (tmp_path / f"{row['name']}-panel.png").stat().st_size > 5000
        assert row["explained"] == row["class"] == max(
            zip(row["probabilities"], CLASSES, strict=True)
        )[1]  # fmt: skip
        assert sum(row["probabilities"]) == pytest.approx(1)
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".npy", ".json"}


def test_the_votes_are_those_of_predict(resnet, films, tmp_path):
    from evaluation.predictions import PredictionTable

    table = PredictionTable.read(resnet / "predictions" / "test.parquet")
    out = ["-o", str(tmp_path), "--split", "test", "--limit", "4"]
    assert main(["explain", str(resnet), *out]) == 0
    rows = json.loads((tmp_path / "explain.json").read_text())["images"]
    by_file = dict(zip(table.rows["id"], table.probabilities, strict=True))
    assert len(rows) == 4
    files = [Path(row["path"]) for row in rows]  # a folder may be listed class by class
    assert [next(i for i, name in enumerate(by_file) if str(file).endswith(name)) for file in files
            ] == np.linspace(0, len(by_file) - 1, 4).round().tolist()  # fmt: skip
    for row in rows:
        match = [p for name, p in by_file.items() if row["path"].endswith(name)]
        np.testing.assert_allclose(row["probabilities"], match[0], atol=1e-5)


def test_another_class_may_be_asked_for(resnet, films, tmp_path):
    for name in ("simple", "comminuted"):
        main(["explain", str(resnet), films[0], "-o", str(tmp_path / name), "--class", name])
    one, other = (json.loads((tmp_path / n / "explain.json").read_text())["images"][0]
                  for n in ("simple", "comminuted"))  # fmt: skip
    assert (one["explained"], other["explained"]) == ("simple", "comminuted")
    assert one["class"] == other["class"]
    maps = [np.load(tmp_path / n / f"{one['name']}.npy") for n in ("simple", "comminuted")]
    assert np.abs(maps[0] - maps[1]).max() > 0.05


def test_a_ensemble_lays_its_members_maps_over_the_picture(resnet, larger, films, tmp_path):
    folder = ensemble_of(tmp_path / "ensemble", bests(resnet, larger), "weighted")
    hashes = [read(run / "best.ckpt")[0].weights for run in (resnet, larger)]
    save(
        folder / "voters" / "weighted", FittedEnsemble(Weighted(np.array([3, 1])), hashes, CLASSES)
    )
    assert main(["explain", str(folder), films[0], "-o", str(tmp_path / "out")]) == 0
    row = json.loads((tmp_path / "out/explain.json").read_text())["images"][0]
    each = np.load(tmp_path / "out" / f"{row['name']}.members.npy")
    common = np.load(tmp_path / "out" / f"{row['name']}.npy")
    np.testing.assert_allclose(common, 0.75 * each[0] + 0.25 * each[1], atol=1e-6)
    votes = np.array([one["probabilities"] for one in row["members"].values()])
    np.testing.assert_allclose(row["probabilities"], 0.75 * votes[0] + 0.25 * votes[1], atol=1e-6)
    assert [one["weight"] for one in row["members"].values()] == [0.75, 0.25]


def test_a_ensemble_with_a_voter_that_is_lost_or_other_members_is_refused(
    resnet, larger, tmp_path
):  # fmt: skip
    folder = ensemble_of(tmp_path / "ensemble", bests(resnet, larger), "learned")
    with pytest.raises(ValueError, match=r"no voter.json of its voter 'learned' in"):
        load_ensemble(folder)
    file = ensemble_of(tmp_path / "other", bests(resnet, larger)) / "ensemble.json"
    assert load_ensemble(file).member_names == ("resnet", "larger")
    file.write_text(file.read_text().replace(read(larger / "best.ckpt")[0].weights, "ff"))
    with pytest.raises(ValueError, match="member 'larger' has other weights"):
        load_ensemble(file)


def test_wrong_questions_are_one_line(resnet, films, tmp_path, capsys):
    for more, words in (
        ([films[0], "--class", "broken"], "'broken' is not one of none, simple, comminuted"),
        ([], "name either IMAGE..., or --split"),
        ([films[0], "--method", "Grad"], "method: 'Grad' is not one of GradCAM"),
        (["nowhere.png"], "1 of 1 images cannot be read: nowhere.png: No such file"),
        ([films[0], "--limit", "1"], "--limit: of a --split; the IMAGEs are named one by one"),
        ([films[0], "--limit", "1", "--config", "no.yaml"], "--config --limit: of a --split"),
        (["--split", "test", "--measure", "--class", "none"], "--class none: --measure goes by"),
        (["--split", "test", "--measure", "--part", "wrist"], "--part wrist: --measure goes by"),
    ):
        assert main(["explain", str(resnet), *more, "-o", str(tmp_path / "no")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_others_are_explained_where_a_file_cannot_be_read(resnet, films, tmp_path, capsys):
    bad = tmp_path / "bad.csv"
    bad.write_text("path\n")
    pictures = [films[0], str(bad), films[1]]
    assert main(["explain", str(resnet), *pictures, "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert "2 images explained" in told.out
    assert f"1 of 3 images cannot be read: {bad}: " in told.err
    assert told.err.count("\n") == 1
    said = json.loads((tmp_path / "out/explain.json").read_text())
    assert [row["path"] for row in said["images"]] == films[:2]


@pytest.mark.parametrize("verb", ["explain", "serve", "prune"])
def test_a_device_that_is_not_here_is_one_line(verb, resnet, capsys):
    with pytest.raises(SystemExit):
        main([verb, str(resnet), "--device", "gpu"])
    assert "--device: 'gpu' is not one of auto, cpu" in capsys.readouterr().err


def test_dicom_in_png_out(resnet, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    scan = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    scan.preamble = bytes(128)
    source = tmp_path / "CT_small.dcm"
    scan.save_as(source)
    assert main(["explain", str(resnet), str(source), "-o", str(tmp_path)]) == 0
    assert cv2.imread(str(tmp_path / "CT_small.png")).shape == (128, 128, 3)


def test_a_run_folder_is_as_good_as_its_checkpoint(resnet):
    assert load(resnet).members[0].weights == load(Path(resnet) / "best.ckpt").members[0].weights
