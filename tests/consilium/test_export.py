"""Exported members answer like their checkpoints, and describe themselves."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from consilium.cli.main import main
from consilium.inference.export import bundle, parity
from consilium.inference.export.formats import FORMATS
from consilium.inference.predictor import load
from datamodules.preprocess import Preprocess
from evaluation.metrics.calibration import Temperature
from evaluation.voters.simple import Weighted
from evaluation.voters.store import FittedEnsemble, save
from lightning_modules import ImageClassifier, OneVsOneClassifier
from lightning_modules.checkpoints import read
from tests.consilium.saved import CLASSES, ensemble_of, saved


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Two unlike members, one with its classes in another order, and a calibrated voter."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ensemble")
    pairs = OneVsOneClassifier([CLASSES[k] for k in (2, 0, 1)], "test_efficientnet", image_size=48)
    plain = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    files = [
        saved(plain, Preprocess(size=32), folder / "plain.ckpt"),
        saved(pairs, Preprocess(size=48, clahe=2.0), folder / "pairs.ckpt"),
    ]
    hashes = [read(file)[0].weights for file in files]
    voter = FittedEnsemble(Weighted(np.array([3, 1])), hashes, CLASSES, Temperature(0.7), "val")
    save(folder / "ensemble", voter)
    return ensemble_of(folder / "ensemble", files, "weighted", fitted_on="val")


@pytest.fixture(scope="module")
def exports(ensemble, tmp_path_factory):
    """The ensemble in every format."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in FORMATS:
        assert main(["export", str(ensemble), "--format", kind, "-o", str(folder / kind)]) == 0
    return folder


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_answers_like_the_ensemble(kind, ensemble, exports):
    ours, theirs = load(ensemble), bundle.load(exports / kind)
    pictures = parity.generated(5)
    parts = [""] * len(pictures)
    said = [m.answer([m.prepare(p) for p in pictures], parts) for m in (ours, theirs)]
    assert said[0].std() > 0.05
    near = 1e-3 if kind == "packed" else 1e-5  # float16
    np.testing.assert_allclose(said[1], said[0], atol=near)
    np.testing.assert_allclose(theirs.ask(pictures[2]), said[0][:, 2], atol=near)


def test_an_onnx_file_describes_itself_and_takes_any_batch(ensemble, exports):
    session = onnxruntime.InferenceSession(str(exports / "onnx" / "plain.onnx"))
    about = json.loads(session.get_modelmeta().custom_metadata_map["consilium"])
    module = load(ensemble).members[0].module
    assert about["class_names"] == CLASSES
    assert Preprocess.from_dict(about["preprocess"]) == Preprocess(size=32)
    assert about["weights"] == read(ensemble.parent / "plain.ckpt")[0].weights
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 32, 32)
        with torch.inference_mode():
            expected = module(images).numpy()
        np.testing.assert_allclose(session.run(None, {"image": images.numpy()})[0], expected,
                                   atol=1e-4)  # fmt: skip


def test_the_other_files_describe_themselves_too(exports):
    with safe_open(exports / "safetensors" / "pairs.safetensors", "pt") as file:
        about = json.loads(file.metadata()["consilium"])
    assert (about["module"], about["output"]) == ("OneVsOneClassifier", "pair_logits")
    extra = {"consilium": ""}
    torch.export.load(exports / "torch_export" / "plain.pt2", extra_files=extra)
    assert json.loads(extra["consilium"])["preprocess"]["size"] == 32


def test_only_an_export_that_can_be_built_anew_has_maps(exports):
    picture = parity.generated(1)[0]
    assert bundle.load(exports / "safetensors").look(picture).heat.shape == picture.shape
    with pytest.raises(ValueError, match="plain: this export has no maps; explain its checkpoint"):
        bundle.load(exports / "onnx").look(picture)


def test_other_weights_and_numbers_that_are_none_are_refused(ensemble):
    ours, other = load(ensemble), load(ensemble)
    with torch.no_grad():
        next(iter(other.members[0].module.net.parameters())).mul_(1.01)
    files = [ensemble / "ensemble.json"] * 2
    found = parity.compare(ours, other, parity.generated(2), files)
    with pytest.raises(ValueError, match=r"plain: as onnx a probability differs by .* than 1e-04"):
        parity.refuse("onnx", found)
    parity.refuse("onnx", {"pairs": found["pairs"]})
    with pytest.raises(ValueError, match="differs by nan"):
        parity.refuse("onnx", {"x": parity.Parity("x.onnx", 1, 0.0, float("nan"))})


def test_two_classes_from_one_logit(tmp_path):
    module = ImageClassifier(["no", "yes"], "test_resnet", image_size=32, head="sigmoid")
    file = saved(module, Preprocess(size=32), tmp_path / "one.ckpt")
    out = str(tmp_path / "out")
    assert main(["export", str(file), "--format", "torch_export", "-o", out]) == 0
    picture = parity.generated(1)[0]
    other = bundle.load(tmp_path / "out").ask(picture)
    np.testing.assert_allclose(other, load(file).ask(picture), atol=1e-6)


def test_a_folder_of_other_things_is_left_alone_and_an_export_replaced(ensemble, tmp_path, capsys):
    words = ["export", str(ensemble), "--format", "safetensors", "-o", str(tmp_path)]
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(words) == 2
    assert "holds files that are no export" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "thesis.txt").rename(tmp_path / "export.json")
    assert main(words) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert "2 files, each held to torch on 8 pictures" in capsys.readouterr().out


def test_an_export_may_be_replaced_from_within(ensemble, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("an older one")
    monkeypatch.chdir(tmp_path / "out")
    assert main(["export", str(ensemble), "--format", "safetensors", "-o", "."]) == 0
    assert bundle.load(tmp_path / "out").class_names == CLASSES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_was_changed_is_refused(ensemble, tmp_path):
    main(["export", str(ensemble), "--format", "safetensors", "-o", str(tmp_path / "out")])
    file = tmp_path / "out" / "plain.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"plain.safetensors: it is missing, or not the file"):
        bundle.load(tmp_path / "out")
