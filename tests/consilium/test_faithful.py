"""The measures of heat maps, against maps that are planted."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from consilium.cli.main import main
from consilium.inference import saliency_evaluation
from consilium.inference.predictor import Member, Model, load
from datamodules.preprocess import Preprocess
from evaluation.voters.simple import Soft
from evaluation.voters.store import FittedEnsemble
from lightning_modules import checkpoints
from lightning_modules.cam import Maps
from tests.consilium.saved import CLASSES, saved


class Spot(torch.nn.Module):
    """Says "bright" when the pixel at (8, 20) of a 32 x 32 picture is."""

    def forward(self, images):
        z = 10 * (images[:, 0, 8, 20] - 0.5)
        return torch.stack([-z, z], dim=1)


class Told:
    """An explainer that points at one place."""

    def __init__(self, y, x):
        self.module, self.place = Spot(), (y, x)

    def __call__(self, images, classes=None):
        maps = np.zeros((1, 32, 32), np.float32)
        maps[(0, *self.place)] = 1
        return Maps(maps, np.array(classes), self.module(images).numpy())


@pytest.fixture
def films(tmp_path):
    rows = []
    for i in range(6):
        picture = np.zeros((32, 32), np.uint8)
        picture[6:11, 18:23] = 255 if i % 2 else 0
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), picture)
        box = "18,6,23,11" if i % 2 else ""
        rows.append({"path": str(path), "label": i % 2, "patient": f"p{i}", "box": box})
    return pd.DataFrame(rows)


def model_that_points_at(y, x):
    view = Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1))
    member = Member("spot", "w", view, [0, 1], Told(y, x))
    ensemble = FittedEnsemble(Soft(), ["w"], ["dark", "bright"])
    return Model([member], ensemble, torch.device("cpu"))


def test_the_right_place_is_told_from_a_wrong_one(films):
    right = saliency_evaluation.correct(model_that_points_at(8, 20), films)
    assert len(right) == 3  # those with a box
    found = {
        place: saliency_evaluation._measured(model_that_points_at(*place), "Told", right, "")[0][2]
        for place in ((8, 20), (25, 3))
    }
    good, bad = found.values()
    assert (good["pointing"].value, bad["pointing"].value) == (1, 0)
    assert (good["energy_in_box"].value, bad["energy_in_box"].value) == (1, 0)
    assert good["deletion"].value < bad["deletion"].value
    assert good["insertion"].value > bad["insertion"].value


def test_a_column_of_empty_boxes_is_like_none(films):
    model = model_that_points_at(8, 20)
    normal = films[films["label"] == 0]
    assert len(saliency_evaluation.correct(model, normal)) == 3
    assert len(saliency_evaluation.correct(model, films.assign(box=""))) == 6


def test_where_nothing_is_right_the_figures_are_null_and_say_why(films, tmp_path):
    wrong = saliency_evaluation.correct(
        model_that_points_at(8, 20), films.assign(label=1 - films["label"])
    )
    rows = saliency_evaluation._measured(model_that_points_at(8, 20), "Told", wrong, "")
    assert [member for member, _, _ in rows] == ["spot"]
    assert all(figure.value is None and figure.reason for figure in rows[0][2].values())
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/0.png").touch()  # of an earlier time
    saliency_evaluation.examples(model_that_points_at(8, 20), wrong, tmp_path)
    saliency_evaluation.write(tmp_path, rows)
    page = (tmp_path / "report.html").read_text()
    assert "No labeled picture is rightly classified by all" in page
    assert "Where they look" not in page


def test_shuffled_weights_keep_their_entries_and_lose_their_order(resnet):
    model, strange = load(resnet), saliency_evaluation.randomized(load(resnet))
    for before, after in zip(
        *(m.members[0].explain.module.net.parameters() for m in (model, strange)), strict=True
    ):
        assert torch.equal(before.flatten().sort()[0], after.flatten().sort()[0])
    first = next(iter(model.members[0].explain.module.net.parameters()))
    assert not torch.equal(first, next(iter(strange.members[0].explain.module.net.parameters())))


@pytest.fixture
def simple(resnet, tmp_path):
    """A checkpoint that says "simple" of every picture, so of the simple fractures it is right."""
    module, block = checkpoints.load(resnet / "best.ckpt")
    with torch.no_grad():
        module.net.get_classifier().bias[CLASSES.index("simple")] = 100
    return saved(module, Preprocess.from_dict(block.preprocess), tmp_path / "resnet.ckpt")


def test_the_verb_measures_members_and_methods(resnet, simple, tmp_path, capsys):
    args = ["--split", "test", "--measure", "GradCAM", "EigenCAM", "-o", str(tmp_path)]
    assert main(["explain", str(simple), "--config", str(resnet / "config.yaml"), *args]) == 0
    rows = json.loads((tmp_path / "faithfulness.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["GradCAM", "EigenCAM", "GradCAM, weights randomized"]
    assert rows[0]["figures"]["pointing"]["n"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "weights randomized" in page
    assert "Where they look" in page
    examples = sorted(tmp_path.glob("examples/*.png"))
    assert [file.stem for file in examples] == [str(CLASSES.index("simple"))]  # all it is right of
    assert cv2.imread(str(examples[0])).std() > 0
    assert "resnet, EigenCAM: pointing" in capsys.readouterr().out


def test_training_pictures_of_another_split_are_not_measured(resnet, tmp_path, capsys):
    config = yaml.safe_load((resnet / "config.yaml").read_text())
    source = config["data"]["init_args"]["source"]["init_args"]
    source |= {"seed": 5, "root": str(tmp_path / "films")}  # another split of the same names
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    args = ["--split", "test", "--measure", "--config", str(tmp_path / "other.yaml")]
    assert main(["explain", str(resnet), *args, "-o", str(tmp_path / "no")]) == 2
    assert "are training samples of this checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_training_pictures_are_not_measured(resnet, tmp_path, capsys):
    args = ["--split", "train", "--measure", "-o", str(tmp_path / "no")]
    assert main(["explain", str(resnet), *args]) == 2
    assert "--measure needs --split val or test, not train" in capsys.readouterr().err
