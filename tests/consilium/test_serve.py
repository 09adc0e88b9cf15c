"""The server's predictions are those of the evaluation; maps, groups, referral, backends."""

import base64
import re
import shutil
import socket
from dataclasses import dataclass, replace
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch

from consilium.cli.main import main, parse_arguments
from consilium.cli.serve import server_settings
from consilium.inference import saliency_evaluation
from consilium.inference.export import load_with_backend
from consilium.inference.predictor import load_predictor
from consilium.inference.val_predictions import is_table_of, prediction_sets
from consilium.serving import server
from evaluation import saliency
from evaluation.metrics.calibration import Calibration, fit_referral
from evaluation.metrics.conformal import fit_conformal_sets
from evaluation.predictions import PredictionTable
from evaluation.voters import store
from evaluation.voters.grouped import PerGroup
from evaluation.voters.registry import VOTERS, VoterSpec
from evaluation.voters.simple import Weighted
from evaluation.voters.store import FittedEnsemble
from lightning_modules import checkpoints
from tests.conftest import ROOT
from tests.consilium.serving import decode_gray, image_file, open_client, post_images
from tests.consilium.untrained import CLASSES, write_ensemble

CPU = torch.device("cpu")


def predict_one(client, **fields):
    return post_images(client, [image_file()], **fields).json()["predictions"][0]


@pytest.fixture(scope="module")
def tested_ensemble(tiny, resnet, larger):
    """Run folder of an ensemble with a fitted, calibrated voter, after `consilium test`."""
    folder = tiny.root / "served"
    hashes = [checkpoints.read(run / "best.ckpt")[0].weights for run in (resnet, larger)]
    calibration = Calibration(0.6, scales=[0.5, 1.0, 1.5], biases=[1.0, 0.0, -1.0])
    voter = FittedEnsemble(Weighted(np.array([3, 1])), hashes, CLASSES, calibration, "val")
    store.save(folder / "voters", voter)
    init_args = {"members": [str(resnet), str(larger)], "voter": str(folder / "voters")}
    model = {"class_path": "lightning_modules.EnsembleModule", "init_args": init_args}
    config = tiny.member("served", model=model)
    configs = ["--config", str(ROOT / "configs/base.yaml"), "--config", str(config)]
    assert main(["test", *configs, "--run", str(folder / "ensemble")]) == 0
    return folder / "ensemble"


def read_tables(folder, members=()):
    """Test tables of a run folder: "" for its own, and one for each member."""
    tables = folder / "predictions"
    files = {"": tables / "test.parquet"} | {m: tables / f"test/{m}.parquet" for m in members}
    return {name: PredictionTable.read(file) for name, file in files.items()}


@pytest.mark.parametrize("is_ensemble", [False, True])
def test_probabilities_are_those_of_the_prediction_table(
    is_ensemble, tiny, tested_ensemble, resnet
):
    folder = tested_ensemble if is_ensemble else resnet
    tables = read_tables(folder, ("resnet", "larger") if is_ensemble else ())
    images = next((tiny.root / "phantoms").glob("fracture-64px*"))
    ids = tables[""].rows["id"].tolist()
    predictions = []
    with open_client(load_predictor(folder)) as client:
        for start in range(0, len(ids), 16):
            files = [(name, (images / name).read_bytes()) for name in ids[start : start + 16]]
            predictions += post_images(client, files).json()["predictions"]
    assert len(predictions) == len(ids) > 10
    for row, prediction in enumerate(predictions):
        probabilities = list(prediction["probabilities"].values())
        np.testing.assert_allclose(probabilities, tables[""].probabilities[row], atol=1e-5)
        assert prediction["probability"] == max(probabilities)
        for member in prediction["members"] if is_ensemble else []:
            expected = tables[member["name"]].probabilities[row]
            probabilities = list(member["probabilities"].values())
            np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    weights = [member["weight"] for member in predictions[0]["members"]]
    assert weights == ([0.75, 0.25] if is_ensemble else [1.0])


def test_prediction_counts_agreement_and_refers_below_the_threshold(predictor):
    expected = predictor.predict(decode_gray(image_file()[1]))
    probability = float(expected[-1].max())
    for threshold, referred in ((probability - 1e-4, False), (probability + 1e-4, True)):
        with open_client(predictor, refer_below=threshold) as client:
            prediction = predict_one(client)
        assert prediction["referred"] is referred
    predicted = expected[-1].argmax()
    agrees = expected[:-1].argmax(axis=1) == predicted
    assert prediction["class"] == CLASSES[predicted]
    assert prediction["agreement"] == np.mean(agrees)
    assert [member["agrees"] for member in prediction["members"]] == agrees.tolist()
    assert (prediction["width"], prediction["height"]) == (48, 40)
    assert prediction["saliency_maps"] is None


def test_images_of_a_request_are_predicted_in_their_order_or_none_is(predictor):
    files = [image_file(seed) for seed in range(5)]
    with open_client(predictor) as client:
        alone = [post_images(client, [file]).json()["predictions"][0] for file in files]
        together = post_images(client, files).json()["predictions"]
        truncated = post_images(client, [files[0], ("b.png", files[1][1][:60])])
    assert [prediction["name"] for prediction in together] == [name for name, _ in files]
    for first, second in zip(alone, together, strict=True):
        assert first["probabilities"] == pytest.approx(second["probabilities"], abs=1e-6)
    assert truncated.status_code == 422
    assert "b.png: " in truncated.json()["detail"]


def decode_data_url(url):
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_saliency_maps_are_those_of_explain_with_warm_colors_for_large_values(predictor):
    name, data = image_file(1, 64)
    expected = predictor.explain(decode_gray(data))
    with open_client(predictor) as client:
        response = post_images(client, [(name, data)], saliency_maps="true")
    maps = response.json()["predictions"][0]["saliency_maps"]
    assert decode_data_url(maps["image"]).shape == (64, 72, 3)
    for saliency_map, url in (
        (expected.saliency_map, maps["ensemble"]),
        (expected.member_maps[1], maps["members"]["large"]),
    ):
        blue, _, red, opacity = np.moveaxis(decode_data_url(url).astype(int), 2, 0)
        size = saliency_map.shape[::-1]
        opacity_map = opacity.astype(np.float32) / 255
        reduced = cv2.resize(opacity_map, size, interpolation=cv2.INTER_AREA)
        assert np.median(np.abs(reduced - saliency_map)) < 0.02
        is_large = (opacity > 190) & (red < 255)
        assert (red[is_large] > blue[is_large]).mean() > 0.99


def with_voter(predictor, voter):
    return replace(predictor, ensemble=replace(predictor.ensemble, voter=voter))


def test_ensemble_with_weights_per_group_requires_the_group(predictor):
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])
    voter = PerGroup("body_part", ["elbow", "wrist"], weights, np.array([0.5, 0.5]))
    with open_client(with_voter(predictor, voter)) as client:
        info = client.get("/v1/model").json()
        assert (info["group_attribute"], info["groups"]) == ("body_part", ["elbow", "wrist"])
        for group in ("", " ", "nan"):
            detail = post_images(client, [image_file()], group=group).json()["detail"]
            assert detail == f"group is {group!r}; this ensemble needs the body_part of the image"
        for group, expected in (("elbow", [1, 0]), ("wrist", [0, 1]), ("nose", [0.5, 0.5])):
            prediction = predict_one(client, group=group)
            members = prediction["members"]
            assert [member["weight"] for member in members] == expected
            mean = sum(
                weight * np.array(list(member["probabilities"].values()))
                for weight, member in zip(expected, members, strict=True)
            )
            np.testing.assert_allclose(list(prediction["probabilities"].values()), mean, atol=1e-9)


@dataclass(frozen=True)
class FirstMember(Weighted):
    """A voter of this test: the first member alone."""

    name: ClassVar[str] = "first_member"


def test_voter_registered_in_one_place_is_served_with_its_member_weights(
    untrained_files, tmp_path, monkeypatch
):
    spec = VoterSpec("first_member", "First member only", FirstMember, ("weights",))
    monkeypatch.setitem(VOTERS, "first_member", spec)
    hashes = [checkpoints.read(file)[0].weights for file in untrained_files]
    fitted = FittedEnsemble(FirstMember(np.array([1, 0])), hashes, CLASSES, fitted_on="val")
    write_ensemble(folder := tmp_path, untrained_files, fitted, voter_folder=tmp_path / "voters")
    with open_client(load_predictor(folder)) as client:
        info = client.get("/v1/model").json()
        prediction = predict_one(client)
    assert (info["voter"], info["voter_label"]) == ("first_member", "First member only")
    first, second = prediction["members"]
    assert (first["weight"], second["weight"]) == (1, 0)
    assert prediction["probabilities"] == pytest.approx(first["probabilities"])


@pytest.mark.exhaustive
def test_onnxruntime_predicts_like_torch_and_an_export_has_no_maps(untrained_files, tmp_path):
    folder = tmp_path / "out"
    assert main(["export", str(untrained_files[0]), "-o", str(folder)]) == 0
    torch_only = load_predictor(untrained_files[0])
    onnx_and_maps = load_with_backend(untrained_files[0], "onnxruntime", CPU)
    exported = load_with_backend(folder, None, CPU)
    predictions = []
    for predictor in (torch_only, onnx_and_maps, exported):
        with open_client(predictor) as client:
            predictions.append(predict_one(client))
            response = post_images(client, [image_file()], saliency_maps="true")
            assert response.status_code == (422 if predictor is exported else 200)
    for prediction in predictions[1:]:
        expected = predictions[0]["probabilities"]
        assert prediction["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert onnx_and_maps.members[0].logits_function is not None
    with pytest.raises(ValueError, match="is exported to onnx, which runs with onnxruntime"):
        load_with_backend(folder, "torch", CPU)
    with pytest.raises(ValueError, match="--device cuda: exports and onnxruntime run on the cpu"):
        load_with_backend(folder, None, torch.device("cuda"))


def test_examples_are_the_readable_images_of_a_folder(predictor, tmp_path):
    for seed in range(3):
        name, data = image_file(seed)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("not an image")
    examples = server.find_examples(tmp_path, tmp_path / "best.ckpt")
    assert [path.name for path in examples] == ["image0.png", "image1.png", "image2.png"]
    with open_client(predictor, examples=examples) as client:
        assert client.get("/v1/model").json()["examples"] == [path.name for path in examples]
        assert client.get("/examples/1").content == image_file(1)[1]
        assert client.get("/examples/1/thumbnail").headers["content-type"] == "image/png"
        indices = ("3", "-1", "image0.png")
        statuses = [client.get(f"/examples/{index}").status_code for index in indices]
    assert statuses == [404, 404, 422]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: contains no readable images"):
        server.find_examples(tmp_path / "empty", tmp_path / "best.ckpt")


def test_examples_of_the_models_own_data_are_test_images(resnet, tiny):
    splits = server.data_splits(resnet)
    assert set(splits.values()) == {"train", "val", "test"}
    examples = server.find_examples(tiny.root / "phantoms", resnet)
    assert len(examples) > 1
    assert {splits[path.resolve()] for path in examples} == {"test"}


def test_pointing_scores_are_those_measured_in_the_experiment(predictor, tmp_path):
    assert server.pointing_scores(tmp_path / "ensemble") == {}
    scores = [saliency.SaliencyScores("p1", True, 0.4, 0.1, 0.8),
              saliency.SaliencyScores("p2", False, 0.2, 0.3, 0.7)]  # fmt: skip
    estimates = saliency.saliency_estimates(scores)
    results = [
        saliency_evaluation.SaliencyResult(name, method, estimates)
        for name in ("a", "ensemble (Mean probability)")
        for method in ("GradCAM", "LayerCAM")
    ]
    saliency_evaluation.write_results(tmp_path / "saliency" / "ensemble", results)
    (tmp_path / "ensemble").mkdir()
    measured = server.pointing_scores(tmp_path / "ensemble")
    assert measured == {name: estimates["pointing"] for name in ("a", "ensemble")}
    arguments = parse_arguments("serve", [str(tmp_path / "ensemble")])
    assert server_settings(arguments, predictor).pointing == measured


def test_an_ensemble_with_vector_scaling_is_served_as_it_predicts(predictor):
    scaled = Calibration(0.6, scales=[0.5, 1.0, 1.5], biases=[1.0, 0.0, -1.0])
    fitted = replace(predictor, ensemble=replace(predictor.ensemble, calibration=scaled))
    with open_client(fitted) as client:
        info = client.get("/v1/model").json()
        served = post_images(client, [image_file()]).json()["predictions"][0]["probabilities"]
    assert (info["calibrated"], info["temperature"]) == (True, None)
    assert info["calibration"] == scaled.describe()
    pixels = decode_gray(image_file()[1])
    plain = replace(predictor, ensemble=replace(predictor.ensemble, calibration=Calibration()))
    powers = plain.predict(pixels)[-1] ** (np.array([0.5, 1, 1.5]) / 0.6) * np.exp([1, 0, -1])
    assert list(served.values()) == pytest.approx((powers / powers.sum()).tolist(), abs=1e-5)


def test_members_are_calibrated_by_their_own_temperatures(predictor):
    temperatures = [Calibration(2.0), Calibration(0.5)]
    fitted = replace(predictor.ensemble, member_calibrations=temperatures)
    with open_client(replace(predictor, ensemble=fitted)) as client:
        assert client.get("/v1/model").json()["members_calibrated"] is True
        prediction = post_images(client, [image_file()]).json()["predictions"][0]
    for temperature, member in zip(temperatures, prediction["members"], strict=True):
        raw = np.array(list(member["raw_probabilities"].values()))
        calibrated = list(member["probabilities"].values())
        assert calibrated == pytest.approx(temperature(raw).tolist())
        assert member["probability"] == max(calibrated)
    pixels = decode_gray(image_file()[1])
    explained = replace(predictor, ensemble=fitted).explain(pixels)
    served = [list(member["probabilities"].values()) for member in prediction["members"]]
    assert np.allclose(explained.member_probabilities, served, atol=1e-5)
    with open_client(predictor) as client:
        assert client.get("/v1/model").json()["members_calibrated"] is False
        prediction = post_images(client, [image_file()]).json()["predictions"][0]
    assert all(m["probabilities"] == m["raw_probabilities"] for m in prediction["members"])


def test_threshold_for_a_risk_is_fitted_on_val(resnet, untrained_ensemble):
    table = PredictionTable.read(resnet / "predictions" / "val.parquet")
    expected = fit_referral(table, 0.3)
    assert server.referral_threshold(resnet, load_predictor(resnet), 0.3) == expected
    untrained = load_predictor(untrained_ensemble)
    with pytest.raises(ValueError, match=r"--refer-risk: no val predictions in .*predictions"):
        server.referral_threshold(untrained_ensemble, untrained, 0.3)


def test_sets_of_classes_are_fitted_on_val_and_served(resnet, untrained_ensemble):
    predictor = load_predictor(resnet)
    sets = prediction_sets(resnet, predictor, 0.8)
    table = PredictionTable.read(resnet / "predictions" / "val.parquet")
    assert sets == fit_conformal_sets(table, 1 - 0.8, "class")
    with open_client(predictor, sets=sets) as client:
        assert client.get("/v1/model").json()["sets"] == pytest.approx(0.8)
        prediction = predict_one(client)
    expected = sets(predictor.predict(decode_gray(image_file()[1]))[-1:])[0]
    names = [name for name, is_in in zip(predictor.class_names, expected, strict=True) if is_in]
    assert prediction["prediction_set"] == names
    with open_client(predictor) as client:
        assert predict_one(client)["prediction_set"] is None
    untrained = load_predictor(untrained_ensemble)
    with pytest.raises(ValueError, match=r"--sets: no val predictions in .*predictions"):
        prediction_sets(untrained_ensemble, untrained, 0.8)


def test_threshold_is_not_fitted_on_the_table_of_another_model(resnet, larger, tmp_path):
    shutil.copy(larger / "best.ckpt", tmp_path / "best.ckpt")
    shutil.copytree(resnet / "predictions", tmp_path / "predictions")
    with pytest.raises(ValueError, match="was not predicted by this model"):
        server.referral_threshold(tmp_path, load_predictor(tmp_path), 0.3)


@pytest.fixture
def threshold_with_voter_of(resnet, untrained_files, tmp_path):
    """Function: threshold of `ensemble-all` next to `voters-all`, fitted for the given members."""
    folder = write_ensemble(tmp_path / "ensemble-all", untrained_files)
    predictor = load_predictor(folder)

    def threshold(hashes):
        fitted = FittedEnsemble(predictor.ensemble.voter, hashes, CLASSES)
        store.save(tmp_path / "voters-all", fitted)
        shutil.copytree(resnet / "predictions", tmp_path / "voters-all/predictions")
        return server.referral_threshold(folder, predictor, 0.3)

    return threshold


def test_threshold_of_an_ensemble_is_fitted_on_the_table_of_its_voters(
    threshold_with_voter_of, resnet, untrained_files
):
    table = PredictionTable.read(resnet / "predictions" / "val.parquet")
    hashes = [checkpoints.read(file)[0].weights for file in untrained_files]
    assert threshold_with_voter_of(hashes) == fit_referral(table, 0.3)


def test_threshold_is_not_fitted_with_voters_of_other_members(threshold_with_voter_of):
    with pytest.raises(ValueError, match=r"voters-all.voter.json: fitted for the members"):
        threshold_with_voter_of(["other", "members"])


def test_table_of_an_ensemble_belongs_to_it_only_with_its_members_in_order(
    predictor, resnet, tmp_path
):
    table = PredictionTable.read(resnet / "predictions" / "val.parquet")
    hashes = [member.weights_hash for member in predictor.members]
    for weights, expected in ((hashes, True), (hashes[::-1], False)):
        members = {str(i): {"weights": weights[i]} for i in range(len(weights))}
        with_members = replace(table, meta={**table.meta, "members": members})
        assert is_table_of(with_members, tmp_path, predictor) is expected
    assert not is_table_of(table, tmp_path, predictor)


def test_port_in_use_and_missing_model_are_errors_of_one_line(untrained_ensemble, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", str(untrained_ensemble), "--port", port]) == 2
    assert re.search(rf"--port {port}: .*in use", capsys.readouterr().err)
    assert main(["serve", str(tmp_path / "no.ckpt")]) == 2
    assert "no.ckpt" in capsys.readouterr().err
