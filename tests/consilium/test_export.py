"""Exported members predict like their checkpoints, and describe themselves."""

import hashlib
import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from consilium.cli.main import main
from consilium.inference import export
from consilium.inference.export import (
    ExportDifference,
    generated_images,
    load_export,
    load_with_backend,
)
from consilium.inference.export_formats import FORMATS, ExportFormat
from consilium.inference.predictor import load_predictor
from datamodules.preprocess import Preprocess
from evaluation.metrics.calibration import Calibration
from evaluation.voters.simple import Weighted
from evaluation.voters.store import FittedEnsemble
from lightning_modules import ImageClassifier, OneVsOneClassifier
from lightning_modules.checkpoints import read
from tests.consilium.untrained import CLASSES, save_checkpoint, write_ensemble


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Folder of two different members, one with another class order, and a calibrated voter."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ensemble")
    class_names = [CLASSES[k] for k in (2, 0, 1)]
    pairs = OneVsOneClassifier(class_names, "test_efficientnet", image_size=48)
    plain = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    files = [
        save_checkpoint(plain, Preprocess(size=32), folder / "plain.ckpt"),
        save_checkpoint(pairs, Preprocess(size=48, clahe=2.0), folder / "pairs.ckpt"),
    ]
    hashes = [read(file)[0].weights for file in files]
    calibration = Calibration(0.7, scales=[0.5, 1.0, 1.5], biases=[0.3, 0.0, -0.2])
    voter = FittedEnsemble(Weighted(np.array([3, 1])), hashes, CLASSES, calibration, "val")
    return write_ensemble(folder / "ensemble", files, voter)


@pytest.fixture(scope="module")
def exports(ensemble, tmp_path_factory):
    """The ensemble in every format, one folder each."""
    folder = tmp_path_factory.mktemp("exports")
    for name in FORMATS:
        assert main(["export", str(ensemble), "--format", name, "-o", str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_export_predicts_like_the_ensemble(name, ensemble, exports):
    predictor, exported = load_predictor(ensemble), load_export(exports / name)
    images = generated_images(5)
    groups = [""] * len(images)
    expected, actual = (
        p.predict_batch([p.preprocess(image) for image in images], groups)
        for p in (predictor, exported)
    )
    assert expected.std() > 0.04
    tolerance = 1e-3 if name == "packed" else 1e-5  # float16
    np.testing.assert_allclose(actual, expected, atol=tolerance)
    np.testing.assert_allclose(exported.predict(images[2]), expected[:, 2], atol=tolerance)


def test_onnx_file_describes_itself_and_accepts_any_batch_size(ensemble, exports):
    session = onnxruntime.InferenceSession(str(exports / "onnx" / "plain.onnx"))
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["consilium"])
    module = load_predictor(ensemble).members[0].module
    assert metadata["class_names"] == CLASSES
    assert Preprocess.from_dict(metadata["preprocess"]) == Preprocess(size=32)
    assert metadata["weights"] == read(ensemble.parent / "plain.ckpt")[0].weights
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 32, 32)
        with torch.inference_mode():
            expected = module(images).numpy()
        logits = session.run(None, {"image": images.numpy()})[0]
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_safetensors_and_torch_export_files_describe_themselves(exports):
    with safe_open(exports / "safetensors" / "pairs.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["consilium"])
    assert (metadata["module"], metadata["output"]) == ("OneVsOneClassifier", "pair_logits")
    extra = {"consilium": ""}
    torch.export.load(exports / "torch_export" / "plain.pt2", extra_files=extra)
    assert json.loads(extra["consilium"])["preprocess"]["size"] == 32


def test_only_formats_that_rebuild_the_module_have_saliency_maps(exports):
    image = generated_images(1)[0]
    explanation = load_export(exports / "safetensors").explain(image)
    assert explanation.saliency_map.shape == image.shape
    message = "plain: this export has no saliency maps; explain its checkpoint"
    with pytest.raises(ValueError, match=message):
        load_export(exports / "onnx").explain(image)


def test_different_weights_and_nan_are_refused(ensemble):
    predictor, changed = load_predictor(ensemble), load_predictor(ensemble)
    with torch.no_grad():
        next(iter(changed.members[0].module.net.parameters())).mul_(1.01)
    files = [ensemble / "ensemble.json"] * 2
    images = generated_images(2)
    differences = export.compare_with_checkpoints(predictor, changed, images, files)
    message = r"plain: exported to onnx, a probability differs .* more than 1e-04"
    with pytest.raises(ValueError, match=message):
        export.require_agreement("onnx", differences)
    export.require_agreement("onnx", {"pairs": differences["pairs"]})
    difference = ExportDifference("x.onnx", 1, 0.0, float("nan"))
    with pytest.raises(ValueError, match="differs from PyTorch's by nan"):
        export.require_agreement("onnx", {"x": difference})


@pytest.mark.parametrize(("head", "classes", "format_"), [
    ("sigmoid", 2, "torch_export"), ("ordinal", 4, "torch_export"), ("ordinal", 4, "onnx"),
])  # fmt: skip
def test_heads_are_part_of_an_exported_network(head, classes, format_, tmp_path):
    module = ImageClassifier(list("0123")[:classes], "test_resnet", image_size=32, head=head)
    file = save_checkpoint(module, Preprocess(size=32), tmp_path / "one.ckpt")
    folder = tmp_path / "out"
    assert main(["export", str(file), "--format", format_, "-o", str(folder)]) == 0
    image = generated_images(1)[0]
    expected = load_predictor(file).predict(image)
    np.testing.assert_allclose(load_export(folder).predict(image), expected, atol=1e-6)


def test_format_registered_in_one_place_is_exported_and_loaded(ensemble, tmp_path, monkeypatch):
    original = FORMATS["safetensors"]
    entry = ExportFormat(".weights", original.write, original.read, 1e-5, "for this test")
    monkeypatch.setitem(FORMATS, "weights", entry)
    predictor, images = load_predictor(ensemble), generated_images(2)
    export.export_ensemble(predictor, "weights", tmp_path / "out", images)
    assert (tmp_path / "out" / "plain.weights").is_file()
    probabilities = load_export(tmp_path / "out").predict(images[0])
    np.testing.assert_allclose(probabilities, predictor.predict(images[0]), atol=1e-5)


def test_export_replaces_an_export_but_no_other_folder(ensemble, tmp_path, capsys):
    command = ["export", str(ensemble), "--format", "safetensors", "-o", str(tmp_path)]
    (tmp_path / "thesis.txt").write_text("text")
    assert main(command) == 2
    assert "contains files of other kinds; name another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "thesis.txt").rename(tmp_path / "export.json")
    assert main(command) == 2
    assert (tmp_path / "export.json").read_text() == "text"


def test_export_replaces_only_unchanged_files_of_an_export(ensemble, tmp_path, capsys):
    folder = tmp_path / "out"
    command = ["export", str(ensemble), "-o", str(folder)]
    assert main([*command, "--format", "packed"]) == 0
    before = {file.name for file in folder.iterdir()}
    assert "plain.packed.safetensors" in before
    (folder / "thesis").mkdir()
    (folder / "thesis/text.txt").write_text("text")
    (folder / "pairs.packed.safetensors").write_text("changed")
    listed = json.loads((folder / ".files.json").read_text())
    (tmp_path / "outside").write_text("text")
    outside = hashlib.sha256(b"text").hexdigest()
    (folder / ".files.json").write_text(json.dumps(listed | {"../outside": outside}))
    capsys.readouterr()
    assert main([*command, "--format", "safetensors"]) == 0
    output = capsys.readouterr().out
    for kept in ("pairs.packed.safetensors", "thesis"):
        assert f"{folder}/{kept}: kept, since no export wrote it\n" in output
    assert (folder / "thesis/text.txt").read_text() == (tmp_path / "outside").read_text() == "text"
    assert (folder / "pairs.packed.safetensors").read_text() == "changed"
    assert not (folder / "plain.packed.safetensors").exists()
    assert load_export(folder).class_names == CLASSES


def test_export_overwrites_no_file_that_was_changed(ensemble, tmp_path, capsys):
    command = ["export", str(ensemble), "--format", "safetensors", "-o", str(tmp_path)]
    assert main(command) == 0
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "plain.safetensors").write_text("changed")
    assert main(command) == 2
    assert f"--output {tmp_path}: plain.safetensors is no unchanged" in capsys.readouterr().err
    changed = before | {tmp_path / "plain.safetensors": b"changed"}
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == changed


def test_export_into_the_current_folder_replaces_it(ensemble, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    for _ in range(2):
        assert main(["export", str(ensemble), "--format", "safetensors", "-o", "."]) == 0
    assert load_export(tmp_path / "out").class_names == CLASSES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_changed_file_is_refused(ensemble, tmp_path):
    main(["export", str(ensemble), "--format", "safetensors", "-o", str(tmp_path / "out")])
    file = tmp_path / "out" / "plain.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"plain.safetensors: missing, or not the file"):
        load_export(tmp_path / "out")


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {spec.description}" in text for name, spec in FORMATS.items())


def test_unknown_formats_and_backends_are_one_line(ensemble, tmp_path, capsys):
    assert main(["export", str(ensemble), "--format", "onx", "-o", str(tmp_path)]) == 2
    assert "--format 'onx' is not one of onnx, torch_export" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--backend 'onnx' is not one of torch, onnxruntime"):
        load_with_backend(ensemble, "onnx", torch.device("cpu"))
