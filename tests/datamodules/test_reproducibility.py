"""Training images do not depend on the number of workers and processes."""

import json
from pathlib import Path

import pytest

from tests.processes import run_script

SCRIPT = Path(__file__).parent / "reproducibility_processes.py"


def train(world_size, num_workers, root, out):
    """The hash of each training image by (epoch, index), and the number of images."""
    run_script(SCRIPT, world_size, num_workers, root, out, world=world_size)
    parts = [json.loads(file.read_text()) for file in out.glob(f"{world_size}-{num_workers}-*")]
    assert len(parts) == world_size
    rows = [tuple(row) for part in parts for row in part]
    return {(epoch, index): digest for epoch, index, digest in rows}, len(rows)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The training images of one process without workers, and the folder of the dataset."""
    folder = tmp_path_factory.mktemp("reference")
    return train(1, 0, folder / "phantoms", folder)[0], folder


@pytest.mark.parametrize(
    ("world_size", "num_workers"), [(2, 2), pytest.param(1, 4, marks=pytest.mark.exhaustive)]
)
def test_workers_and_processes_do_not_change_the_training_images(
    world_size, num_workers, reference, tmp_path
):
    expected, folder = reference
    images, count = train(world_size, num_workers, folder / "phantoms", tmp_path)
    assert images == expected
    assert count - len(images) < 2 * world_size  # an odd epoch repeats at most one image
    epochs = [{digest for (epoch, _), digest in images.items() if epoch == k} for k in (0, 1)]
    assert epochs[0] != epochs[1]
