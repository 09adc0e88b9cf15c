"""The server gives the evaluation's numbers, queues, refuses, and says what it is."""

import base64
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from consilium.cli import serve
from consilium.cli.main import main
from consilium.inference.predictor import load
from consilium.serving import options
from evaluation.metrics.calibration import Temperature
from evaluation.predictions import PredictionTable
from evaluation.selective import fit_referral
from evaluation.voters import store
from evaluation.voters.learned import PerPart
from evaluation.voters.simple import Weighted
from evaluation.voters.store import FittedEnsemble
from lightning_modules import checkpoints
from tests.consilium.saved import CLASSES, ensemble_of
from tests.consilium.served import client, film, post


@pytest.fixture(scope="module")
def tested(tiny, resnet, larger):
    """Run folder of an ensemble with a fitted, calibrated voter, tested by the command."""
    folder = tiny.root / "served"
    runs = [resnet, larger]
    hashes = [checkpoints.read(run / "best.ckpt")[0].weights for run in runs]
    voter = FittedEnsemble(Weighted(np.array([3, 1])), hashes, CLASSES, Temperature(0.6), "val")
    store.save(folder / "voters", voter)
    said = {"members": [str(run) for run in runs], "voter": str(folder / "voters")}
    ensemble = {"class_path": "lightning_modules.EnsembleModule", "init_args": said}
    config = tiny.member("served", model=ensemble)
    base = Path(__file__).parents[2] / "configs" / "base.yaml"
    words = ["--config", str(base), "--config", str(config), "--run", str(folder / "ensemble")]
    assert main(["test", *words]) == 0
    return folder / "ensemble"


def tables(tested, resnet, which):
    if which == "checkpoint":
        return resnet, {"": PredictionTable.read(resnet / "predictions/test.parquet")}
    folder = tested / "predictions"
    names = {"": "test.parquet", "resnet": "test/resnet.parquet", "larger": "test/larger.parquet"}
    return tested, {name: PredictionTable.read(folder / file) for name, file in names.items()}


@pytest.mark.parametrize("which", ["checkpoint", "ensemble"])
def test_the_numbers_are_those_of_the_prediction_table(which, tiny, tested, resnet):
    path, expected = tables(tested, resnet, which)
    folder = next((tiny.root / "phantoms").glob("fracture-64px*"))
    ids = expected[""].rows["id"].tolist()
    found = []
    with client(load(path)) as asked:
        for start in range(0, len(ids), 16):
            names = ids[start : start + 16]
            reply = post(asked, [(name, (folder / name).read_bytes()) for name in names])
            found += reply.json()["answers"]
    assert len(found) == len(ids) > 10
    for at, answer in enumerate(found):
        ensemble = list(answer["probabilities"].values())
        np.testing.assert_allclose(ensemble, expected[""].probabilities[at], atol=1e-5)
        assert answer["confidence"] == max(ensemble)
        for vote in answer["members"] if which == "ensemble" else []:
            own = expected[vote["name"]].probabilities[at]
            np.testing.assert_allclose(list(vote["probabilities"].values()), own, atol=1e-5)


def test_an_answer_counts_votes_and_refers_below_the_threshold(served_model):
    name, data = film()
    said = served_model.ask(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
    confidence = float(said[-1].max())
    for threshold, referred in ((confidence - 1e-4, False), (confidence + 1e-4, True)):
        with client(served_model, refer_below=threshold) as asked:
            answer = post(asked, [(name, data)]).json()["answers"][0]
        assert answer["referred"] is referred
    top = said[-1].argmax()
    assert answer["class"] == CLASSES[top]
    assert answer["agreement"] == np.mean(said[:-1].argmax(axis=1) == top)
    assert [vote["agrees"] for vote in answer["members"]] == [v.argmax() == top for v in said[:-1]]
    assert (answer["width"], answer["height"], answer["maps"]) == (48, 40, None)


def test_several_pictures_are_answered_in_their_order_or_none(served_model):
    many = [film(seed) for seed in range(5)]
    with client(served_model) as asked:
        alone = [post(asked, [one]).json()["answers"][0] for one in many]
        together = post(asked, many).json()["answers"]
        broken = post(asked, [many[0], ("b.png", many[1][1][:60])])
    assert [one["name"] for one in together] == [name for name, _ in many]
    for one, other in zip(alone, together, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    assert broken.status_code == 422
    assert "b.png: " in broken.json()["detail"]


def pixels(url):
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_maps_are_those_of_explain_in_colors_that_warm_up(served_model):
    name, data = film(1, 64)
    looked = served_model.look(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
    with client(served_model) as asked:
        maps = post(asked, [(name, data)], maps="true").json()["answers"][0]["maps"]
    assert pixels(maps["picture"]).shape == (64, 72, 3)
    for heat, url in ((looked.heat, maps["ensemble"]), (looked.maps[1], maps["members"]["large"])):
        blue, _, red, opacity = np.moveaxis(pixels(url).astype(int), 2, 0)
        size = heat.shape[::-1]
        small = cv2.resize(opacity.astype(np.float32) / 255, size, interpolation=cv2.INTER_AREA)
        assert np.median(np.abs(small - heat)) < 0.02
        warm = (opacity > 190) & (red < 255)
        assert (red[warm] > blue[warm]).mean() > 0.99


def test_a_ensemble_that_needs_the_body_part_asks_for_it(served_model):
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])
    voter = PerPart("body_part", ["elbow", "wrist"], weights, np.array([0.5, 0.5]))
    parts = replace(served_model, ensemble=replace(served_model.ensemble, voter=voter))
    with client(parts) as asked:
        assert asked.get("/v1/model").json()["body_parts"] == ["elbow", "wrist"]
        for none in ("", " ", "nan"):
            detail = post(asked, [film()], body_part=none).json()["detail"]
            assert f"body_part is {none!r}: this ensemble's voter" in detail
        for part, member in (("elbow", 0), ("wrist", 1)):
            answer = post(asked, [film()], body_part=part).json()["answers"][0]
            expected = answer["members"][member]["probabilities"]
            assert answer["probabilities"] == pytest.approx(expected)
        assert post(asked, [film()], body_part="nose").status_code == 200


def test_onnxruntime_answers_alike_with_maps_and_an_export_without(served_files, tmp_path):
    assert main(["export", str(served_files[0]), "-o", str(tmp_path / "out")]) == 0
    model = load(served_files[0])
    other = serve.model_of(served_files[0], "onnxruntime", torch.device("cpu"))
    alone = serve.model_of(tmp_path / "out", None, torch.device("cpu"))
    replies = []
    for each in (model, other, alone):
        with client(each) as asked:
            replies.append(post(asked, [film()]).json()["answers"][0])
            status = post(asked, [film()], maps="true").status_code
            assert status == (422 if each is alone else 200)
    with pytest.raises(ValueError, match="is an export to onnx, so onnxruntime answers"):
        serve.model_of(tmp_path / "out", "torch", torch.device("cpu"))
    with pytest.raises(
        ValueError, match="--device cuda: exports and onnxruntime answer on the cpu"
    ):
        serve.model_of(tmp_path / "out", None, torch.device("cuda"))
    for reply in replies[1:]:
        assert reply["probabilities"] == pytest.approx(replies[0]["probabilities"], abs=1e-5)
    assert other.members[0].runtime is not None


def test_examples_are_what_the_folder_holds_that_can_be_read(served_model, tmp_path):
    for seed in range(3):
        name, data = film(seed)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("no picture")
    found = options.examples(tmp_path)
    assert [path.name for path in found] == ["film0.png", "film1.png", "film2.png"]
    with client(served_model, examples=found) as asked:
        assert asked.get("/v1/model").json()["examples"] == [path.name for path in found]
        assert asked.get("/examples/1").content == film(1)[1]
        assert asked.get("/examples/1/thumbnail").headers["content-type"] == "image/png"
        statuses = {at: asked.get(f"/examples/{at}").status_code for at in ("3", "-1", "film0.png")}
    assert statuses == {"3": 404, "-1": 404, "film0.png": 422}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no pictures in it"):
        options.examples(tmp_path / "empty")


def test_a_threshold_for_a_risk_is_chosen_on_val(resnet, served_ensemble):
    words = ["--refer-risk", "0.3"]
    asked = serve.parser().parse_args([str(resnet), *words])
    table = PredictionTable.read(resnet / "predictions" / "val.parquet")
    expected = fit_referral(table, 0.3).threshold
    assert options.refer_below(asked, load(resnet)) == expected
    asked = serve.parser().parse_args([str(served_ensemble), *words])
    with pytest.raises(ValueError, match=r"--refer-risk: no val table in .*predictions"):
        options.refer_below(asked, load(served_ensemble))


def test_a_threshold_is_not_chosen_by_another_models_table(resnet, larger, tmp_path):
    shutil.copy(larger / "best.ckpt", tmp_path / "best.ckpt")
    shutil.copytree(resnet / "predictions", tmp_path / "predictions")
    asked = serve.parser().parse_args([str(tmp_path), "--refer-risk", "0.3"])
    with pytest.raises(ValueError, match="is not of this model's classes, weights and voter"):
        options.refer_below(asked, load(tmp_path))


@pytest.fixture
def refer(resnet, served_files, tmp_path):
    """Asks ensemble-all for its threshold, with a voter of these members' hashes beside it."""
    folder = ensemble_of(tmp_path / "ensemble-all", served_files)
    model = load(folder)

    def asked(hashes):
        fitted = FittedEnsemble(model.ensemble.voter, hashes, CLASSES)
        store.save(tmp_path / "voters-all", fitted)
        shutil.copytree(resnet / "predictions", tmp_path / "voters-all/predictions")
        return options.refer_below(
            serve.parser().parse_args([str(folder), "--refer-risk", "0.3"]), model
        )

    return asked


def test_a_ensembles_threshold_is_chosen_by_its_own_voters(refer, resnet, served_files):
    table = PredictionTable.read(resnet / "predictions" / "val.parquet")
    hashes = [checkpoints.read(file)[0].weights for file in served_files]
    assert refer(hashes) == fit_referral(table, 0.3).threshold


def test_voters_of_other_members_choose_no_threshold(refer):
    with pytest.raises(ValueError, match=r"voters-all.voter.json: fitted for the members"):
        refer(["older", "than these"])


def test_a_ensembles_own_table_must_be_of_its_members(served_model, resnet, tmp_path):
    table = PredictionTable.read(resnet / "predictions" / "val.parquet")
    hashes = [member.weights for member in served_model.members]
    for found, expected in ((hashes, True), (hashes[::-1], False)):
        members = {str(at): {"weights": weights} for at, weights in enumerate(found)}
        stated = replace(table, meta={**table.meta, "members": members})
        assert options.is_of(stated, tmp_path, served_model) is expected
    assert not options.is_of(table, tmp_path, served_model)


def test_an_address_that_is_taken_and_a_model_that_is_none_are_one_line(
    served_ensemble, tmp_path, capsys
):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", str(served_ensemble), "--port", port]) == 2
    assert re.search(rf"--port {port}: .*in use", capsys.readouterr().err)
    assert main(["serve", str(tmp_path / "no.ckpt")]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
