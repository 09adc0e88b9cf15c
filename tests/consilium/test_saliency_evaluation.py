"""Evaluation of saliency maps, on maps with a known peak."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from consilium.cli.main import main
from consilium.inference import saliency_evaluation
from consilium.inference.predictor import Member, Predictor, load_predictor
from datamodules.images import read_image
from datamodules.preprocess import Preprocess
from evaluation.saliency import deletion_auc
from evaluation.voters.simple import Soft
from evaluation.voters.store import FittedEnsemble
from lightning_modules import checkpoints
from lightning_modules.cam import Explanation
from tests.consilium.untrained import CLASSES, save_checkpoint

SPOT, ELSEWHERE = (8, 20), (25, 3)  # y, x


class SpotClassifier(torch.nn.Module):
    """Predicts "bright" if the pixel at `SPOT` of a 32 x 32 image is bright."""

    def forward(self, images):
        z = 10 * (images[:, 0, *SPOT] - 0.5)
        return torch.stack([-z, z], dim=1)


class PointExplainer:
    """Returns maps with a single pixel."""

    def __init__(self, module, y, x):
        self.module, self.position = module, (y, x)

    def __call__(self, images, classes=None):
        maps = np.zeros((1, 32, 32), np.float32)
        maps[(0, *self.position)] = 1
        return Explanation(maps, np.array(classes), self.module(images).numpy())


@pytest.fixture
def table(tmp_path):
    """Six images; every second one has a bright square, with its box."""
    rows = []
    for i in range(6):
        image = np.zeros((32, 32), np.uint8)
        image[6:11, 18:23] = 255 if i % 2 else 0
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), image)
        box = "18,6,23,11" if i % 2 else ""
        rows.append({"path": str(path), "label": i % 2, "patient": f"p{i}", "box": box})
    return pd.DataFrame(rows)


def predictor_with_map_at(y, x):
    view, module = Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1)), SpotClassifier()
    member = Member("spot", "w", view, [0, 1], module, PointExplainer(module, y, x))
    ensemble = FittedEnsemble(Soft(), ["w"], ["dark", "bright"])
    return Predictor([member], ensemble, torch.device("cpu"))


def evaluate(rows, y, x):
    predictor = predictor_with_map_at(y, x)
    return saliency_evaluation.evaluate_maps(predictor, "point", rows)


def test_metrics_distinguish_a_correct_map_from_a_wrong_one(table):
    rows = saliency_evaluation.select_correct(predictor_with_map_at(*SPOT), table)
    assert len(rows) == 3  # those with a box
    good, bad = (evaluate(rows, *position)[0].estimates for position in (SPOT, ELSEWHERE))
    assert (good["pointing"].value, bad["pointing"].value) == (1, 0)
    assert (good["energy_in_box"].value, bad["energy_in_box"].value) == (1, 0)
    assert good["deletion"].value < bad["deletion"].value
    assert good["insertion"].value > bad["insertion"].value


def test_column_of_empty_boxes_is_ignored(table):
    predictor = predictor_with_map_at(*SPOT)
    normal = table[table["label"] == 0]
    assert len(saliency_evaluation.select_correct(predictor, normal)) == 3
    assert len(saliency_evaluation.select_correct(predictor, table.assign(box=""))) == 6


def test_without_correct_predictions_estimates_are_null_and_have_a_reason(table, tmp_path):
    predictor = predictor_with_map_at(*SPOT)
    wrong_labels = table.assign(label=1 - table["label"])
    rows = saliency_evaluation.select_correct(predictor, wrong_labels)
    results = evaluate(rows, *SPOT)
    assert [result.member for result in results] == ["spot"]
    assert all(e.value is None and e.reason for e in results[0].estimates.values())
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/0.png").touch()  # of an earlier evaluation
    saliency_evaluation.write_examples(predictor, rows, tmp_path)
    saliency_evaluation.write_results(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    assert "No labeled image is classified correctly by all members" in page
    assert saliency_evaluation.example_sections(tmp_path) == []


def test_results_are_read_as_they_were_written(table, tmp_path):
    results = evaluate(table, *SPOT)
    saliency_evaluation.write_results(tmp_path, results)
    assert saliency_evaluation.read_results(tmp_path) == results


def test_randomized_weights_are_a_permutation(resnet):
    original = load_predictor(resnet)
    randomized = saliency_evaluation.randomize_weights(load_predictor(resnet))
    parameters = [list(p.members[0].module.net.parameters()) for p in (original, randomized)]
    for before, after in zip(*parameters, strict=True):
        assert torch.equal(before.flatten().sort()[0], after.flatten().sort()[0])
    assert not torch.equal(parameters[0][0], parameters[1][0])


def test_an_ensemble_is_scored_as_image_by_image_and_keeps_its_weights(predictor, table):
    rows, expected = table[:2], []
    for path, label in zip(rows["path"], rows["label"], strict=True):
        image = read_image(path)
        blurred = cv2.GaussianBlur(image, (0, 0), max(image.shape[:2]) / 20)
        saliency_map = predictor.with_method("EigenCAM").explain(image, label).saliency_map

        def score(images, label=label):
            return np.array([predictor.predict(i)[-1][label] for i in images])

        expected.append(deletion_auc(score, image, blurred, saliency_map))
    results = saliency_evaluation.evaluate_saliency(predictor, ["EigenCAM"], rows)
    assert results[2].estimates["deletion"].value == pytest.approx(np.mean(expected), abs=1e-6)
    assert results == saliency_evaluation.evaluate_saliency(predictor, ["EigenCAM"], rows)


@pytest.fixture
def always_simple(resnet, tmp_path):
    """A checkpoint that predicts "simple" for every image."""
    module, block = checkpoints.load(resnet / "best.ckpt")
    with torch.no_grad():
        module.net.get_classifier().bias[CLASSES.index("simple")] = 100
    view = Preprocess.from_dict(block.preprocess)
    return save_checkpoint(module, view, tmp_path / "resnet.ckpt")


def test_command_evaluates_members_and_methods(resnet, always_simple, tmp_path, capsys):
    arguments = ["--split", "test", "--measure", "GradCAM", "EigenCAM", "-o", str(tmp_path)]
    config = ["--config", str(resnet / "config.yaml")]
    assert main(["explain", str(always_simple), *config, *arguments]) == 0
    rows = json.loads((tmp_path / "saliency.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["GradCAM", "EigenCAM", "GradCAM, weights randomized"]
    assert rows[0]["estimates"]["pointing"]["n"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "weights randomized" in page
    assert "Saliency maps" in page
    examples = sorted(tmp_path.glob("examples/*.png"))
    assert [file.stem for file in examples] == [str(CLASSES.index("simple"))]
    assert cv2.imread(str(examples[0])).std() > 0
    assert "resnet, EigenCAM: pointing game" in capsys.readouterr().out


def test_training_samples_of_another_split_are_not_evaluated(resnet, tmp_path, capsys):
    config = yaml.safe_load((resnet / "config.yaml").read_text())
    source = config["data"]["init_args"]["source"]["init_args"]
    source |= {"val": 0.1, "test": 0.8}  # the same images, split differently
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--split", "test", "--measure", "--config", str(tmp_path / "other.yaml")]
    assert main(["explain", str(resnet), *arguments, "-o", str(tmp_path / "no")]) == 2
    assert "are training samples of this checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_train_split_is_not_evaluated(resnet, tmp_path, capsys):
    arguments = ["--split", "train", "--measure", "-o", str(tmp_path / "no")]
    assert main(["explain", str(resnet), *arguments]) == 2
    assert "--measure needs --split val or test, not train" in capsys.readouterr().err
