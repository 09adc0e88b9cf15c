from dataclasses import replace

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules.cache import list_stores
from datamodules.datamodule import ImageDataModule, Loading
from datamodules.images import ImageError, read_image
from datamodules.preprocess import Preprocess
from datamodules.samplers import Balance
from datamodules.sources import Folders, Phantoms

NAMES = ["none", "simple", "comminuted"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("phantoms"))


def module(root, **changes):
    source = Phantoms(num_patients=40, images_per_patient=2, root=root, val=0.2, test=0.2)
    values = {"preprocess": Preprocess(size=32), "batch_size": 8, "workers": 0} | changes
    made = ImageDataModule(source, NAMES, **values)
    made.prepare_data()
    made.setup("fit")
    return made


def gathered(loader):
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def test_a_batch_is_what_the_contract_says(root):
    data = module(root)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    row = data.manifest.table.iloc[int(batch["index"][0])]
    assert row["label"] == batch["label"][0]
    assert torch.equal(batch["image"][0], data.preprocess(read_image(row["path"])))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_each_row_of_its_split_once(root, split):
    data = module(root)
    seen = gathered(getattr(data, f"{split}_dataloader")())
    assert seen["index"].tolist() == data.rows(split).tolist()


def test_views_come_from_one_picture_and_are_named(root):
    data = module(root)
    small, large = Preprocess(size=16), Preprocess(size=48, fit="crop")
    names = data.view_names([small.to_dict(), large.to_dict(), small.to_dict()])
    assert names == [small.name, large.name, small.name]
    batch = next(iter(data.val_dataloader()))
    image = read_image(data.manifest.table["path"][int(batch["index"][0])])
    assert set(batch["image"]) == {small.name, large.name}
    assert torch.equal(batch["image"][large.name][0], large(image))


def test_augmented_pixels_are_a_function_of_seed_epoch_and_index(root):
    def epoch(number, **changes):
        loader = module(root, augment="fracture", **changes).train_dataloader()
        loader.sampler.set_epoch(number)
        seen = gathered(loader)
        return seen["image"][np.argsort(seen["index"].numpy())]

    first = epoch(0)
    assert torch.equal(first, epoch(0, workers=2, batch_size=5))
    assert not torch.equal(first, epoch(1))
    assert not torch.equal(first, epoch(0, seed=1))


def test_under_a_trainer_batches_stay_bytes_until_they_are_on_the_device(root):
    data = module(root)
    floats = next(iter(data.val_dataloader()))
    data.trainer = L.Trainer(logger=False, accelerator="cpu")
    raw = next(iter(data.val_dataloader()))
    assert raw["image"].dtype == torch.uint8
    assert raw["image"].shape == (8, 1, 32, 32)  # gray stays one channel
    done = data.on_after_batch_transfer(raw, 0)
    assert torch.equal(done["image"], floats["image"])
    assert torch.equal(data.on_after_batch_transfer(done, 0)["image"], floats["image"])


def test_gray_and_color_pictures_share_a_batch(root, tmp_path):
    gray = np.tile(np.arange(32, dtype=np.uint8), (32, 1))
    color = np.dstack([gray, gray // 2, gray // 3])
    for name, image in (("train/none/a", gray), ("val/none/b", gray), ("val/none/c", color)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    data = ImageDataModule(
        Folders(str(tmp_path), None), ["none"], Preprocess(size=32), num_workers=0
    )
    data.setup("validate")
    seen = next(iter(data.val_dataloader()))["image"]
    for k, image in enumerate((gray, cv2.cvtColor(color, cv2.COLOR_BGR2RGB))):
        assert torch.equal(seen[k], data.preprocess(image))


def test_a_quarantine_is_left_out_with_a_note(root, tmp_path):
    whole = module(root).manifest.table
    gone = whole["id"][:3].tolist()
    whole[:3].to_csv(tmp_path / "quarantine.csv", index=False)
    kept = module(root, reading=Loading(leave_out=str(tmp_path / "quarantine.csv"))).manifest
    assert kept.table["id"].tolist() == [name for name in whole["id"] if name not in gone]
    assert kept.notes[-1].startswith(f"3 files were left out by quarantine.csv: {gone[0]}")
    (tmp_path / "other.csv").write_text("name\nx\n")
    with pytest.raises(ValueError, match=r"other.csv has no column 'id'; it has \['name'\]"):
        module(root, reading=Loading(leave_out=str(tmp_path / "other.csv")))
    (tmp_path / "strange.csv").write_text(f"id\n{gone[0]}\nnobody.png\n")
    with pytest.raises(ValueError, match=r"strange.csv names 1 ids that the data lacks: \['nob"):
        module(root, reading=Loading(leave_out=str(tmp_path / "strange.csv")))


def test_a_last_training_batch_of_one_picture_is_left_out(root):
    count = len(module(root).rows("train"))
    sizes = {
        size: [len(batch["label"]) for batch in module(root, batch_size=size).train_dataloader()]
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
    with pytest.raises(ValueError, match="'val' that 'fit' needs has no pictures"):
        data.setup("fit")


def test_it_can_be_written_as_a_config(root):
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    values = {
        "class_path": "datamodules.datamodule.ImageDataModule",
        "init_args": {
            "source": {
                "class_path": "datamodules.sources.Phantoms",
                "init_args": {"patients": 40, "films": 2, "root": root},
            },
            "class_names": NAMES,
            "preprocess": {"size": 64, "mean": [0.5, 0.5, 0.5]},
            "balance": {"class_weights": [1, 2, 3]},
            "reading": {"cache": "somewhere"},
        },
    }
    data = parser.instantiate_classes(parser.parse_object({"data": values})).data
    assert data.preprocess == Preprocess(size=64, mean=(0.5, 0.5, 0.5))
    assert data.balance == Balance([1.0, 2.0, 3.0])
    assert data.reading.cache == "somewhere"
    dumped = parser.dump(parser.parse_object({"data": values}))
    again = parser.instantiate_classes(parser.parse_string(dumped)).data
    assert again.preprocess == data.preprocess


def test_the_cache_changes_no_pixel(root, tmp_path):
    reading = Loading(cache=str(tmp_path / "cache"))
    preprocess = Preprocess(size=32, clahe=2.0, margin=4)
    plain = module(root, preprocess=preprocess, augment="chest")
    cached = module(root, preprocess=preprocess, augment="chest", reading=reading, workers=2)
    for one, other in zip(plain.train_dataloader(), cached.train_dataloader(), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert one["image"].shape[-2:] == (32, 32)
    views = [Preprocess(size=16).to_dict(), Preprocess(size=24).to_dict()]
    batches = [next(iter(m.val_dataloader())) for m in (plain, cached) if m.view_names(views)]
    for name in batches[0]["image"]:
        assert torch.equal(batches[0]["image"][name], batches[1]["image"][name])


@pytest.mark.parametrize("cache", [True, False])
def test_corrupt_files_end_the_run_or_are_skipped_with_a_note(tmp_path, cache):
    broken = broken_folder(tmp_path)
    reading = Loading(cache=str(tmp_path / "cache") if cache else None)
    made = ImageDataModule(broken, ["a", "b"], Preprocess(size=8), num_workers=0, reading=reading)
    made.setup("fit")
    with pytest.raises(ImageError, match=r"bad\.png: begins with"):
        list(made.train_dataloader())
    skipping = ImageDataModule(
        broken,
        ["a", "b"],
        Preprocess(size=8),
        num_workers=0,
        reading=replace(reading, corrupt="skip"),
    )
    skipping.setup("fit")
    assert skipping.manifest.notes[-1].startswith("1 files were skipped: they cannot be read")
    assert len(gathered(skipping.train_dataloader())["index"]) == 8
    assert len(list_stores(tmp_path / "cache")) == cache  # all files once, the broken one as such


def broken_folder(folder):
    for split in ("train", "val"):
        for k in range(8):
            path = folder / "data" / split / "ab"[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((9, 9), 20 * k + len(split), np.uint8))
    (folder / "data" / "train" / "a" / "bad.png").write_text("<html>")
    return Folders(str(folder / "data"), patient=None)


def test_weights_order_and_limit_come_from_train_alone(root):
    data = module(root, balance=Balance("inverse", limit=5))
    labels = data.manifest.table["label"].to_numpy()
    assert np.bincount(labels[data.rows("train")]).tolist() == [5, 5, 5]
    assert data.class_weights == [1.0, 1.0, 1.0]
    assert len(data.rows("val")) == (data.manifest.table["split"] == "val").sum()
    data = module(root, balance=Balance(sampler="balanced"), batch_size=100)
    counts = np.bincount(gathered(data.train_dataloader())["label"].numpy())
    assert counts.max() - counts.min() <= 1
