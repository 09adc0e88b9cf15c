import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules.datamodule import ImageDataModule
from datamodules.images import read
from datamodules.preprocess import Preprocess
from datamodules.sources import Phantoms

NAMES = ["none", "simple", "comminuted"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("phantoms"))


def module(root, **changes):
    source = Phantoms(patients=40, films=2, root=root, val=0.2, test=0.2)
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
    assert torch.equal(batch["image"][0], data.preprocess(read(row["path"])))


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
    image = read(data.manifest.table["path"][int(batch["index"][0])])
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


def test_an_empty_split_is_refused(root):
    source = Phantoms(patients=5, films=1, root=root, val=0.0, test=0.0)
    data = ImageDataModule(source, NAMES, workers=0)
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
        },
    }
    data = parser.instantiate_classes(parser.parse_object({"data": values})).data
    assert data.preprocess == Preprocess(size=64, mean=(0.5, 0.5, 0.5))
    dumped = parser.dump(parser.parse_object({"data": values}))
    again = parser.instantiate_classes(parser.parse_string(dumped)).data
    assert again.preprocess == data.preprocess
