"""What users of Lightning are used to: it works, or an error of one line says what to type."""

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from consilium.cli.main import main
from consilium.training.lightning_cli import validate_config
from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess
from evaluation.results import read_results
from lightning_modules import ImageClassifier, OneVsOneClassifier, checkpoints

CLASSES = ["none", "simple", "comminuted"]
WARMUP = {"model.init_args.lr_scheduler": {"name": "cosine", "warmup_epochs": 5}}


class Images(Dataset):
    """Random images in the form that `lightning_modules.base.Batch` describes."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"image": torch.randn(3, 32, 32), "label": index % 3, "index": index}


def quiet_trainer(folder, **options):
    return L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
                     enable_model_summary=False, default_root_dir=folder, **options)  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.fast_dev_run", "true"],
        ["--trainer.max_epochs", "1"],
    ],
    ids=" ".join,
)
def test_short_run_of_a_config_with_a_longer_warmup(tiny, tmp_path, capsys, arguments):
    configs = tiny.configs("warmup", **WARMUP)
    assert main(["fit", *configs, "--run", str(tmp_path / "run"), *arguments]) == 0
    assert "val split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.accelerator", "gpu"],
         "--trainer.accelerator gpu: not available on this machine; give --trainer.accelerator "
         "auto, or cpu"),
        (["--trainer.accelerator", "cuda"], "--trainer.accelerator cuda: not available"),
        (["--model.lr", "0.1"], "command line: unknown key 'lr' of lightning_modules."
         "ImageClassifier; did you mean 'optimizer.lr'?"),
        (["--model.init_args.lr", "0.1"], "command line: unknown key 'lr' of"),
        (["--data.batchsize", "4"], "command line: unknown key 'batchsize' of datamodules."
         "ImageDataModule; did you mean 'batch_size'?"),
        (["--max_epochs", "4"], "command line: unknown key 'max_epochs'; did you mean "
         "'trainer.max_epochs'?"),
        (["--ckpt_path", "last"], "has no last.ckpt"),
        (["--run", ""], "--run '': must be the path of a folder"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_error_of_one_line_says_what_to_type(tiny, tmp_path, capsys, arguments, message):
    if torch.cuda.is_available() and "--trainer.accelerator" in arguments:
        pytest.skip("this machine has a GPU")
    run = tmp_path / "run"
    assert main(["fit", *tiny.configs("habits"), "--run", str(run), *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not run.exists()


def test_data_given_as_an_argument_replaces_that_of_config_files(tiny, tmp_path):
    """A run's own split column and fractions would leave out images of another table."""
    table = {"class_path": "datamodules.Table"}
    own = {"files": "own.csv", "split": "fold", "fractions": {"val": 0.2, "test": 0.3}}
    configs = tiny.configs("table", **{"data.init_args.source": table | {"init_args": own}})
    other = {"source": table | {"init_args": {"files": "other.csv"}}, "class_names": ["a", "b"]}
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump({"class_path": "datamodules.ImageDataModule",
                                    "init_args": other}))  # fmt: skip
    args = [*configs, "--data", str(file), "--data.init_args.batch_size", "3"]
    data = validate_config(["test", *args])["test"].data.init_args
    source = data.source.init_args
    assert (source.files, source.split, source.fractions) == ("other.csv", "split", None)
    assert (data.class_names, data.batch_size, data.preprocess.size) == (["a", "b"], 3, 224)
    merged = validate_config(["test", *configs, "--data.init_args.batch_size", "3"])
    assert merged["test"].data.init_args.source.init_args.split == "fold"


def test_own_file_with_callbacks_names_the_key_that_adds_to_those_of_the_base(
    tiny, tmp_path, capsys
):
    callbacks = [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]
    own = tiny.configs("own_callbacks", **{"trainer.callbacks": callbacks})
    assert main(["fit", *own, "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"{tiny.root}/own_callbacks.yaml: trainer.callbacks: none of them writes" in error
    assert "to add to its callbacks, write `callbacks+`" in error
    assert main(["fit", *own[2:], "--run", str(tmp_path / "run")]) == 2
    assert "give --config configs/base.yaml first" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoint_by_the_name_that_lightning_gives_it(resnet, tmp_path, capsys, name):
    config = ["--config", str(resnet / "config.yaml"), "--run", str(tmp_path / "run")]
    assert main(["test", *config, "--ckpt_path", name]) == 0
    assert f"checkpoint: {resnet}/{name}.ckpt\n" in capsys.readouterr().out
    weights = checkpoints.read(resnet / f"{name}.ckpt")[0].weights
    assert read_results(tmp_path / "run/results.json").meta["weights"] == weights


@pytest.mark.parametrize("argument", ["--ckpt_path", "--run"])
def test_checkpoint_or_run_folder_alone_brings_its_config(resnet, tmp_path, argument):
    run = tmp_path / "moved"
    run.mkdir()
    for name in ("config.yaml", "best.ckpt"):
        (run / name).write_bytes((resnet / name).read_bytes())
    value = run / "best.ckpt" if argument == "--ckpt_path" else run
    assert main(["test", argument, str(value)]) == 0
    assert (
        read_results(run / "results.json").metrics == read_results(resnet / "results.json").metrics
    )


def test_checkpoint_without_a_config_beside_it_names_the_missing_file(resnet, tmp_path, capsys):
    (tmp_path / "best.ckpt").write_bytes((resnet / "best.ckpt").read_bytes())
    assert main(["test", "--ckpt_path", str(tmp_path / "best.ckpt")]) == 2
    assert f"--config: required, as there is no {tmp_path}/config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["model", "data"])
def test_help_of_a_group_needs_no_class(capsys, group):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["fit", f"--{group}.help"])
    expected = {"model": "--model.backbone", "data": "--data.batch_size"}
    assert f"  {expected[group]} " in capsys.readouterr().out


def test_load_from_checkpoint_returns_the_evaluated_model(resnet):
    model = ImageClassifier.load_from_checkpoint(resnet / "best.ckpt")
    assert not model.training
    assert checkpoints.weights_hash(model.state_dict()) == read_results(
        resnet / "results.json").meta["weights"]  # fmt: skip
    with pytest.raises(checkpoints.CheckpointError, match=r"is of ImageClassifier, not OneVsOne"):
        OneVsOneClassifier.load_from_checkpoint(resnet / "best.ckpt")
    with pytest.raises(ValueError, match=r"takes a path only, not backbone"):
        ImageClassifier.load_from_checkpoint(resnet / "best.ckpt", backbone="resnet18")


@pytest.mark.parametrize("model_class", [ImageClassifier, OneVsOneClassifier])
def test_hparams_are_the_arguments_of_the_model(model_class):
    model = model_class(CLASSES, "test_resnet")
    assert model.hparams.backbone == "test_resnet"
    assert model.hparams["optimizer"]["lr"] == 1e-3
    assert model.hparams == model.init_args


def test_plain_loaders_train_and_test_and_metrics_are_returned(tmp_path):
    model, trainer = ImageClassifier(CLASSES, "test_resnet"), quiet_trainer(tmp_path)
    loader = DataLoader(Images(), batch_size=4)
    trainer.fit(model, loader, loader)
    (metrics,) = trainer.test(model, loader, verbose=False)
    (best,) = trainer.test(dataloaders=loader, ckpt_path="best", verbose=False)
    for values in (metrics, best):
        assert set(values) == {
            f"test/{n}"
            for n in ("loss", "accuracy", "balanced_accuracy", "kappa_quadratic", "auroc")
        }
        assert values["test/loss"] > 0
    path = trainer.checkpoint_callback.best_model_path
    assert ImageClassifier.load_from_checkpoint(path).class_names == CLASSES


def test_groups_of_settings_may_be_dicts_in_python(tmp_path):
    source = Phantoms("fracture", 30, 2, 64, root=str(tmp_path))
    groups = {"preprocess": {"size": 48}, "balance": {"sampler": "weighted"},
              "fold": {"index": 1, "num_folds": 4}}  # fmt: skip
    data = ImageDataModule(source, CLASSES, **groups, num_workers=0)
    assert data.preprocess == Preprocess(size=48)
    assert data.balance.sampler == "weighted"
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["image"].shape[1:] == (3, 48, 48)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sise'"):
        ImageDataModule(source, CLASSES, preprocess={"sise": 48})


def test_checkpoint_has_the_arguments_of_the_model_once(resnet):
    """LightningCLI would let `hyper_parameters` in a file beat the config of a test."""
    content = torch.load(resnet / "best.ckpt", weights_only=True)
    assert "hyper_parameters" not in content
    assert content["consilium"]["init_args"]["backbone"] == "test_resnet"
