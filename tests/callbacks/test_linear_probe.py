"""A linear probe is the optimal head on frozen features, and an ordinary checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import nn

from callbacks.linear_probe import HeadProblem
from consilium.cli.main import main
from consilium.inference.data_config import load_datamodule
from consilium.inference.export import load_export
from consilium.inference.predictor import load_predictor
from datamodules.cache import FeatureStore
from datamodules.images import read_image
from evaluation.predictions import PredictionTable
from lightning_modules import ImageClassifier, OneVsOneClassifier, checkpoints, features
from lightning_modules.ensemble import EnsembleModule
from lightning_modules.features import FeatureExtractor, head_layer
from tests.conftest import ROOT

CLASSES = ["a", "b", "c"]
CLASS_NAMES = ["none", "simple", "comminuted"]  # of the tiny members
PROBE = ("--config", str(ROOT / "configs/recipe/probe.yaml"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


def probe(cache, penalties=(0.1,)):
    options = f"{{cache_dir: {cache}, penalties: {list(penalties)}}}"
    return (*PROBE, f"--trainer.callbacks.init_args={options}")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory, cache):
    """Run folder of a probe of an untrained network with batch norm."""
    return tiny.fit("probe", tmp_path_factory.mktemp("probe") / "run", *probe(cache))


def gradient_of_problem(problem, penalty):
    """The largest derivative of the problem's objective at its solution."""
    weight, bias = (value.requires_grad_() for value in problem.minimize(penalty))
    outputs = problem.features @ weight.T + bias
    loss = problem.module.compute_loss(outputs, problem.labels, problem.class_weights)
    (loss + penalty / 2 * weight.square().sum()).backward()
    return max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))


def make_problem(module, class_weights=None, count=90, size=20):
    rng = np.random.default_rng(0)
    num_classes = len(module.class_names)
    labels = rng.integers(0, num_classes, count)
    values = torch.from_numpy(rng.normal(size=(count, size)) + labels[:, None]).float()
    if module.head.is_multi_label:
        labels = rng.integers(-1, 2, (count, num_classes))  # some are unknown
    std, mean = torch.std_mean(values, dim=0, correction=0)
    return HeadProblem(
        module, (values - mean) / std, mean, std, torch.from_numpy(labels), class_weights,
        [f"p{k // 2}" for k in range(count)],
    )  # fmt: skip


@pytest.mark.parametrize(
    "module",
    [
        ImageClassifier(CLASSES, "test_resnet"),
        ImageClassifier(CLASSES, "test_resnet", loss={"name": "focal", "label_smoothing": 0.1}),
        ImageClassifier(CLASSES[:2], "test_resnet", head="sigmoid"),
        ImageClassifier(CLASSES, "test_resnet", head="ordinal"),
        OneVsOneClassifier(CLASSES, "test_resnet"),
        ImageClassifier(CLASSES, "test_resnet", head="multi_label"),
    ],
    ids=["softmax", "focal", "sigmoid", "ordinal", "pairs", "findings"],
)
def test_the_head_is_the_optimum_of_the_loss_of_the_module(module):
    weights = torch.linspace(0.5, 1.5, len(module.class_names))
    if module.head.is_multi_label:
        weights = torch.stack([weights, 1 / weights], dim=1)
    assert gradient_of_problem(make_problem(module, weights), 0.03) < 1e-4


def test_the_head_is_a_logistic_regression():
    problem = make_problem(ImageClassifier(CLASSES, "test_resnet"))
    head = problem.minimize(0.1)
    strength = 1 / (0.1 * len(problem.labels))
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=1000)
    features = problem.features.double().numpy()  # in single precision the reference stops early
    reference.fit(features, problem.labels.numpy())
    logits = problem.features @ head.weight.T + head.bias
    expected = reference.predict_proba(features)
    assert np.abs(softmax(logits.numpy(), axis=1) - expected).max() < 1e-5


def test_features_that_hardly_vary_get_no_large_weights(run):
    """Steps of fine-tuning that change such a feature a little would destroy the head."""
    data = load_datamodule([str(run / "config.yaml")])
    data.setup("fit")
    rows = data.rows("train")
    labels = data.manifest.table["label"].to_numpy()[rows]
    features = np.random.default_rng(0).normal(size=(len(rows), 20)) + labels[:, None]
    features[:, 0] *= 1e-3
    module = ImageClassifier(CLASS_NAMES, "test_resnet")
    head = HeadProblem.of_module(module, data, features.astype(np.float32), rows).fit(0.1)
    assert head.weight[:, 0].abs().max() < head.weight[:, 1:].abs().max()


def test_the_penalty_is_chosen_by_held_out_patients():
    problem = make_problem(ImageClassifier(CLASSES, "test_resnet"))
    noise = torch.randn(len(problem.labels), 400, generator=torch.Generator().manual_seed(0))
    noisy = replace(problem, features=noise)
    assert noisy.choose_penalty([10.0, 1e-4], 5)[0] == 10.0
    assert problem.choose_penalty([10.0, 0.01], 5)[0] == 0.01


def test_the_run_predicts_like_the_regression_everywhere(run, tmp_path):
    module, _ = checkpoints.load(run / "best.ckpt")
    data = load_datamodule([str(run / "config.yaml")])
    data.setup("fit")
    tables = {split: data.manifest.table.iloc[data.rows(split)] for split in ("train", "val")}
    predictor = load_predictor(run / "best.ckpt")
    views = {
        split: [predictor.preprocess(read_image(path)) for path in table["path"]]
        for split, table in tables.items()
    }
    inputs = {split: torch.stack([v for [v] in map(dict.values, of_split)])
              for split, of_split in views.items()}  # fmt: skip
    with torch.no_grad():
        pooled = {
            split: module.net.forward_head(module.net.forward_features(x), pre_logits=True).numpy()
            for split, x in inputs.items()
        }
    weight, bias = (value.detach().numpy() for value in head_layer(module.net, "").parameters())
    expected = softmax(pooled["val"] @ weight.T + bias, axis=1)
    of_run = PredictionTable.read(run / "predictions/val.parquet")
    assert list(of_run.rows["id"]) == list(tables["val"]["id"])
    assert np.abs(of_run.probabilities - expected).max() < 1e-5
    served = predictor.predict_batch(views["val"], [""] * len(expected))
    assert np.abs(served[-1] - expected).max() < 1e-5
    ensemble = EnsembleModule(CLASS_NAMES, [str(run)]).eval()
    with torch.no_grad():
        logits = ensemble.member_logits({ensemble.views[0]: inputs["val"]})[:, 0]
    assert np.abs(softmax(logits.numpy(), axis=1) - expected).max() < 1e-5
    assert main(["export", str(run), "--format", "onnx", "-o", str(tmp_path / "onnx")]) == 0
    onnx = load_export(tmp_path / "onnx")
    served = onnx.predict_batch(views["val"], [""] * len(expected))
    assert np.abs(served[-1] - expected).max() < 1e-5

    mean, std = pooled["train"].mean(axis=0), pooled["train"].std(axis=0)
    std = np.maximum(std, np.sqrt(np.mean(std**2)))
    strength = 1 / (0.1 * len(tables["train"]))
    regression = LogisticRegression(C=strength, tol=1e-6, max_iter=1000)
    regression.fit((pooled["train"] - mean) / std, tables["train"]["label"])
    probabilities = regression.predict_proba((pooled["val"] - mean) / std)
    assert np.abs(probabilities - expected).max() < 5e-3  # features are stored in half precision


def test_a_second_probe_reads_no_image_for_its_features(tiny, run, cache, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("images are read")

    monkeypatch.setattr(FeatureExtractor, "_batches", refuse)
    tiny.fit("probe", tmp_path / "again", *probe(cache, (0.01,)))


@pytest.mark.parametrize("change", ["weights", "preprocess", "code", "image", "truncated"])
def test_whatever_changes_the_features_computes_them_again(
    tiny, run, cache, tmp_path, monkeypatch, change
):
    computed, batches, changes = [], FeatureExtractor._batches, {}

    def count(self, rows, epoch):
        computed.append(len(rows))
        return batches(self, rows, epoch)

    monkeypatch.setattr(FeatureExtractor, "_batches", count)
    if change == "weights":
        changes["seed_everything"] = 1
    if change == "preprocess":
        changes["data.init_args.preprocess"] = {"size": 32, "clahe": 2.0}
    if change == "code":
        monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    if change == "image":
        labels = load_datamodule([str(run / "config.yaml")]).load_manifest()
        file = labels.table["path"].iloc[labels.rows("train")[0]]
        content = Path(file).read_bytes()
        Path(file).write_bytes(content + b" ")
    if change == "truncated":
        for file in cache.glob("features-*/*.npy"):
            file.write_bytes(file.read_bytes()[:-100])
    try:
        tiny.fit("other", tmp_path / "run", *probe(cache), **changes)
    finally:
        if change == "image":
            Path(file).write_bytes(content)
    assert computed


def test_processes_that_add_the_same_features_leave_a_valid_store(tmp_path):
    first, second = FeatureStore(tmp_path), FeatureStore(tmp_path)
    values = np.arange(6.0).reshape(2, 3)
    for store in (first, second):
        assert store.missing(["a", "b", "a"]) == [0, 1]
        store.add(["a", "b"], values)
    assert FeatureStore(tmp_path).read(["b", "a"]).tolist() == values[::-1].tolist()


def test_an_image_that_was_added_is_the_only_one_computed(tmp_path):
    FeatureStore(tmp_path).add(["a", "b"], np.zeros((2, 3)))
    assert FeatureStore(tmp_path).missing(["a", "c", "b"]) == [1]


def test_augmented_copies_are_further_samples(tiny, tmp_path, cache, capsys):
    options = f"--trainer.callbacks.init_args={{cache_dir: {cache}, augmented: 2, penalties: [1]}}"
    tiny.fit("augmented", tmp_path / "run", *PROBE, options)
    num_images = len(
        load_datamodule([str(tmp_path / "run/config.yaml")]).load_manifest().rows("train")
    )
    assert f"linear probe: {3 * num_images} images" in capsys.readouterr().out


def test_a_probe_can_be_trained_on(tiny, tmp_path, cache):
    recipe = ("--config", str(ROOT / "configs/recipe/probe_then_finetune.yaml"))
    options = f"{{cache_dir: {cache}, penalties: [0.1]}}"
    run = tiny.fit("finetuned", tmp_path / "run", *recipe, "--trainer.max_epochs", "2",
                   f"--trainer.callbacks.init_args={options}")  # fmt: skip
    state = checkpoints.read(run / "last.ckpt")[1]
    torch.manual_seed(0)
    stem = ImageClassifier(CLASSES, "test_resnet").net.state_dict()
    changed = {name for name, value in stem.items() if not torch.equal(state[f"net.{name}"], value)}
    assert {"conv1.0.weight", "fc.weight"} <= changed
    assert not {name for name in changed if "running_" in name}  # the head was fitted for them


def test_a_network_without_a_linear_head_is_refused_in_one_line():
    module = ImageClassifier(CLASSES, "test_resnet")
    module.net.fc = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    with pytest.raises(ValueError, match="test_resnet is not one linear layer but Sequential"):
        head_layer(module.net, "test_resnet")
