import cv2
import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules.cache import list_stores
from datamodules.datamodule import ImageDataModule
from datamodules.images import ImageError, read_image
from datamodules.preprocess import Preprocess
from datamodules.samplers import Balance
from datamodules.sources import Folders, Phantoms

NAMES = ["none", "simple", "comminuted"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("phantoms"))


def make_datamodule(root, **changes):
    source = Phantoms(num_patients=40, images_per_patient=2, root=root, val=0.2, test=0.2)
    args = {"preprocess": Preprocess(size=32), "batch_size": 8, "num_workers": 0} | changes
    data = ImageDataModule(source, NAMES, **args)
    data.prepare_data()
    data.setup("fit")
    return data


def concatenate(loader):
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def test_a_batch_has_normalized_images_labels_and_row_numbers(root):
    data = make_datamodule(root)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    row = data.manifest.table.iloc[int(batch["index"][0])]
    assert row["label"] == batch["label"][0]
    assert torch.equal(batch["image"][0], data.preprocess(read_image(row["path"])))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_loaders_give_each_row_of_their_split_once(root, split):
    data = make_datamodule(root)
    samples = concatenate(getattr(data, f"{split}_dataloader")())
    assert samples["index"].tolist() == data.rows(split).tolist()


def test_views_are_made_from_one_decoded_image(root):
    data = make_datamodule(root)
    small, large = Preprocess(size=16), Preprocess(size=48, fit="crop")
    data.views = {small.name: small, large.name: large}
    batch = next(iter(data.val_dataloader()))
    image = read_image(data.manifest.table["path"][int(batch["index"][0])])
    assert set(batch["image"]) == {small.name, large.name}
    assert torch.equal(batch["image"][large.name][0], large(image))


class TwoMembers(L.LightningModule):
    """An ensemble of two preprocessings that records the views of its batches."""

    def __init__(self, cache_dir):
        super().__init__()
        self.member_preprocesses = [Preprocess(size=s).to_dict() for s in (16, 24, 16)]
        self.cache_dir, self.view_names, self.num_stores = cache_dir, set(), 0

    def setup(self, stage):
        self.num_stores = len(list_stores(self.cache_dir))

    def test_step(self, batch, batch_idx):
        assert all(image.dtype == torch.float32 for image in batch["image"].values())
        self.view_names |= set(batch["image"])


def quiet_trainer(**options):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def test_the_views_of_an_ensemble_are_cached_before_setup(root, tmp_path):
    source = Phantoms(num_patients=40, images_per_patient=2, root=root, val=0.2, test=0.2)
    cache_dir = tmp_path / "cache"
    data = ImageDataModule(
        source, NAMES, Preprocess(size=32), num_workers=0, cache_dir=str(cache_dir)
    )
    ensemble = TwoMembers(cache_dir)
    quiet_trainer().test(ensemble, datamodule=data, verbose=False)
    assert ensemble.view_names == {Preprocess(size=16).name, Preprocess(size=24).name}
    assert ensemble.num_stores == 2
    quiet_trainer(max_epochs=1).validate(Linear(), datamodule=data, verbose=False)
    assert data.views == {"": data.preprocess}


class Linear(L.LightningModule):
    """A linear classifier of pixels without any of our callbacks or base classes."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3 * 32 * 32, 3)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch["image"].flatten(1))
        return torch.nn.functional.cross_entropy(logits, batch["label"])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_plain_trainer_fits_any_module(root):
    source = Phantoms(num_patients=40, images_per_patient=2, root=root, val=0.2, test=0.2)
    data = ImageDataModule(source, NAMES, Preprocess(size=32), num_workers=0)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(Linear(), datamodule=data)
    assert trainer.global_step == len(data.train_dataloader())
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_augmented_images_depend_on_seed_epoch_and_row_number_only(root):
    def images(epoch, **changes):
        loader = make_datamodule(root, augment="fracture", **changes).train_dataloader()
        loader.sampler.set_epoch(epoch)
        samples = concatenate(loader)
        return samples["image"][np.argsort(samples["index"].numpy())]

    first = images(0)
    assert torch.equal(first, images(0, num_workers=2, batch_size=5))
    assert not torch.equal(first, images(1))
    assert not torch.equal(first, images(0, seed=1))


def test_under_a_trainer_images_are_normalized_on_the_device(root):
    data = make_datamodule(root)
    normalized = next(iter(data.val_dataloader()))
    data.trainer = L.Trainer(logger=False, accelerator="cpu")
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (8, 1, 32, 32)  # gray images have one channel
    transferred = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(transferred["image"], normalized["image"])
    again = data.on_after_batch_transfer(transferred, 0)
    assert torch.equal(again["image"], normalized["image"])


def test_gray_and_color_images_can_be_in_one_batch(tmp_path):
    gray = np.tile(np.arange(32, dtype=np.uint8), (32, 1))
    color = np.dstack([gray, gray // 2, gray // 3])
    for name, image in (("train/none/a", gray), ("val/none/b", gray), ("val/none/c", color)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    source = Folders(str(tmp_path), None)
    data = ImageDataModule(source, ["none"], Preprocess(size=32), num_workers=0)
    data.setup("validate")
    images = next(iter(data.val_dataloader()))["image"]
    for k, image in enumerate((gray, cv2.cvtColor(color, cv2.COLOR_BGR2RGB))):
        assert torch.equal(images[k], data.preprocess(image))


def test_excluded_samples_are_left_out_with_a_note(root, tmp_path):
    table = make_datamodule(root).manifest.table
    excluded = table["id"][:3].tolist()
    table[:3].to_csv(tmp_path / "quarantine.csv", index=False)
    manifest = make_datamodule(root, exclude=str(tmp_path / "quarantine.csv")).manifest
    assert manifest.table["id"].tolist() == [x for x in table["id"] if x not in excluded]
    assert manifest.notes[-1].startswith(f"3 files were excluded by quarantine.csv: {excluded[0]}")
    (tmp_path / "other.csv").write_text("name\nx\n")
    with pytest.raises(ValueError, match=r"other.csv has no column 'id'; it has \['name'\]"):
        make_datamodule(root, exclude=str(tmp_path / "other.csv"))
    (tmp_path / "strange.csv").write_text(f"id\n{excluded[0]}\nnobody.png\n")
    with pytest.raises(ValueError, match=r"strange.csv has 1 ids that are not in the data: \['nob"):
        make_datamodule(root, exclude=str(tmp_path / "strange.csv"))


def test_a_last_training_batch_of_a_single_image_is_dropped(root):
    count = len(make_datamodule(root).rows("train"))
    sizes = {
        size: [
            len(batch["label"])
            for batch in make_datamodule(root, batch_size=size).train_dataloader()
        ]
        for size in (count - 1, count - 2, count, 1)
    }
    assert sizes[count - 1] == [count - 1]
    assert sizes[count - 2] == [count - 2, 2]
    assert sizes[count] == [count]
    assert sizes[1] == [1] * count


def test_an_empty_split_is_refused(root):
    source = Phantoms(num_patients=20, images_per_patient=1, root=root, val=0.0, test=0.0)
    data = ImageDataModule(source, NAMES, num_workers=0)
    data.prepare_data()
    with pytest.raises(ValueError, match="'val' that 'fit' needs has no images"):
        data.setup("fit")


def test_the_manifest_needs_setup(root):
    data = ImageDataModule(Phantoms(root=root), NAMES, num_workers=0)
    with pytest.raises(RuntimeError, match=r"no manifest before setup\(\)"):
        _ = data.manifest


def test_all_settings_can_be_in_a_config(root):
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    settings = {
        "class_path": "datamodules.datamodule.ImageDataModule",
        "init_args": {
            "source": {
                "class_path": "datamodules.sources.Phantoms",
                "init_args": {"num_patients": 40, "images_per_patient": 2, "root": root},
            },
            "class_names": NAMES,
            "preprocess": {"size": 64, "mean": [0.5, 0.5, 0.5]},
            "augment": "fracture",
            "augment_args": {"rotate": 5.0},
            "balance": {"class_weights": [1, 2, 3]},
            "fold": {"index": 1, "num_folds": 3},
            "cache_dir": "somewhere",
            "pin_memory": True,
            "prefetch_factor": 4,
        },
    }
    data = parser.instantiate(parser.parse_object({"data": settings})).data
    assert data.preprocess == Preprocess(size=64, mean=(0.5, 0.5, 0.5))
    assert data.balance == Balance([1.0, 2.0, 3.0])
    assert (data.cache_dir, data.pin_memory, data.prefetch_factor) == ("somewhere", True, 4)
    assert (data.augment.args["rotate"], data.fold.num_folds) == (5.0, 3)
    dumped = parser.dump(parser.parse_object({"data": settings}))
    again = parser.instantiate(parser.parse_string(dumped)).data
    assert again.preprocess == data.preprocess


def test_the_cache_does_not_change_any_pixel(root, tmp_path):
    cache_dir, preprocess = str(tmp_path / "cache"), Preprocess(size=32, clahe=2.0, margin=4)
    changes = {"preprocess": preprocess, "augment": "chest"}
    plain = make_datamodule(root, **changes)
    cached = make_datamodule(root, cache_dir=cache_dir, num_workers=2, **changes)
    for expected, batch in zip(plain.train_dataloader(), cached.train_dataloader(), strict=True):
        assert torch.equal(expected["image"], batch["image"])
        assert batch["image"].shape[-2:] == (32, 32)
    views = {view.name: view for view in (Preprocess(size=16), Preprocess(size=24))}
    plain.views = cached.views = views
    expected, batch = (next(iter(data.val_dataloader()))["image"] for data in (plain, cached))
    for name in views:
        assert torch.equal(expected[name], batch[name])


@pytest.mark.parametrize("with_cache", [True, False])
def test_corrupt_files_are_an_error_or_are_skipped_with_a_note(tmp_path, with_cache):
    source = corrupt_source(tmp_path)
    args = {"num_workers": 0, "cache_dir": str(tmp_path / "cache") if with_cache else None}
    data = ImageDataModule(source, ["a", "b"], Preprocess(size=8), **args)
    data.setup("fit")
    with pytest.raises(ImageError, match=r"bad\.png: begins with"):
        list(data.train_dataloader())
    data = ImageDataModule(source, ["a", "b"], Preprocess(size=8), corrupt="skip", **args)
    data.setup("fit")
    assert data.manifest.notes[-1].startswith("1 files were skipped because they cannot be read")
    assert len(concatenate(data.train_dataloader())["index"]) == 8
    assert len(list_stores(tmp_path / "cache")) == with_cache  # one store with all files


def corrupt_source(folder):
    for split in ("train", "val"):
        for k in range(8):
            path = folder / "data" / split / "ab"[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((9, 9), 20 * k + len(split), np.uint8))
    (folder / "data" / "train" / "a" / "bad.png").write_text("<html>")
    return Folders(str(folder / "data"), patient=None)


def test_max_per_class_of_all_splits_counts_train_val_and_test_together(root):
    data = make_datamodule(root, balance=Balance(max_per_class=10, limited_splits="all"))
    table = data.manifest.table
    assert table["label"].value_counts().tolist() == [10, 10, 10]
    sizes = [len(data.rows(split)) for split in ("train", "val", "test")]
    assert sum(sizes) == 30
    assert min(sizes) > 0
    left_out = len(make_datamodule(root).manifest.table) - 30
    assert f"{left_out} files were left out, as max_per_class is 10" in data.manifest.notes[-1]


def test_balance_applies_to_the_training_split_only(root):
    data = make_datamodule(root, balance=Balance("inverse", max_per_class=5))
    labels = data.manifest.table["label"].to_numpy()
    assert np.bincount(labels[data.rows("train")]).tolist() == [5, 5, 5]
    assert data.class_weights == [1.0, 1.0, 1.0]
    assert len(data.rows("val")) == (data.manifest.table["split"] == "val").sum()
    data = make_datamodule(root, balance=Balance(sampler="balanced"), batch_size=100)
    counts = np.bincount(concatenate(data.train_dataloader())["label"].numpy())
    assert counts.max() - counts.min() <= 1
