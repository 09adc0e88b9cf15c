import cv2
import numpy as np
import pytest

from datamodules.audit.near_duplicates import NearDuplicate, find_near_duplicates
from datamodules.audit.thumbnails import Thumbnails
from datamodules.phantoms.generate import PhantomSpec, generate_images
from datamodules.splits import Groups
from tests.datamodules.planted_leaks import AUGMENTATIONS, augment, rotate


def generate(kind: str, count: int, size: int) -> list[np.ndarray]:
    """One gray image of each of ``count`` patients."""
    images = (image for _, image in generate_images(PhantomSpec(kind, count, 1, size, seed=5)))
    return [i if i.ndim == 2 else cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in images]


def search(images: list[np.ndarray], patients: np.ndarray) -> list[NearDuplicate]:
    pairs = find_near_duplicates(Thumbnails.of_images(images), patients)
    return [pair for pair in pairs if not pair.is_exposure]


def recall_and_precision(
    originals: list[np.ndarray], fraction: float, per_original: int = 1
) -> tuple[float, float]:
    """Of copies of a fraction of the originals, mixed with them; every image has its own patient.

    A copy is found if it is connected with its original. A pair is right if both images come from
    the same original.
    """
    rng, count = np.random.default_rng(3), len(originals)
    chosen = np.repeat(rng.permutation(count)[: round(fraction * count)], per_original)
    images = [*originals, *(augment(originals[k], rng) for k in chosen)]
    order = rng.permutation(len(images))
    position = order.argsort()
    pairs = search([images[k] for k in order], np.arange(len(images)))
    source = np.concatenate([np.arange(count), chosen])[order]
    groups = Groups(len(images))
    for pair in pairs:
        groups.connect(pair.first, pair.second)
    found = [
        groups.is_connected(position[k], position[count + n]) for n, k in enumerate(chosen.tolist())
    ]
    correct = [source[pair.first] == source[pair.second] for pair in pairs]
    return float(np.mean(found or [True])), float(np.mean(correct or [True]))


def test_copies_of_a_third_of_the_images_are_found():
    recall, precision = recall_and_precision(generate("fracture", 60, 96), 0.3)
    assert recall >= 0.95
    assert precision >= 0.98


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "fraction", "per_original"), [
    ("fracture", 0.0, 1), ("fracture", 0.05, 1), ("fracture", 0.3, 1), ("fracture", 0.9, 1),
    ("fracture", 1.0, 9), ("retina", 0.05, 1), ("retina", 1.0, 9),
    ("osteoporosis", 0.0, 1), ("osteoporosis", 0.05, 1), ("osteoporosis", 0.3, 1),
    ("osteoporosis", 0.9, 1),
])  # fmt: skip
def test_recall_and_precision_do_not_depend_on_the_number_of_copies(kind, fraction, per_original):
    count = 30 if per_original > 1 else 200
    originals = generate(kind, count, 160)
    recall, precision = recall_and_precision(originals, fraction, per_original)
    assert recall >= 0.95
    assert precision >= 0.98


def test_small_images_are_no_copies_of_large_ones_which_have_more_detail():
    images = generate("pneumonia", 60, 128)
    images[::6] = [cv2.resize(i, (64, 64), interpolation=cv2.INTER_AREA) for i in images[::6]]
    assert not search(images, np.arange(60))


def test_an_inverted_copy_is_found():
    images = generate("chest", 30, 96)
    images.append(255 - images[4])
    (pair,) = search(images, np.arange(31))
    assert (pair.first, pair.second) == (4, 30)
    assert pair.pose.score < -0.9
    assert not pair.pose.is_mirrored


def test_an_image_with_many_copies_is_connected_with_all_of_them():
    """More copies than neighbors are searched at first."""
    images, rng = generate("fracture", 30, 96), np.random.default_rng(1)
    images += [AUGMENTATIONS["mirrored"](images[0], rng) if k % 2 else rotate(images[0], 3 * k)
               for k in range(-9, 10) if k]  # fmt: skip
    groups = Groups(len(images))
    for pair in search(images, np.arange(len(images))):
        groups.connect(pair.first, pair.second)
    assert np.flatnonzero(groups.labels() == 0).tolist() == [0, *range(30, 48)]
    assert groups.sizes()[1:30].max() == 1


def follow_up(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another exposure: the same anatomy moved a little, with other noise."""
    moved = rotate(image, 2).astype(float)
    return np.clip(moved + cv2.GaussianBlur(rng.normal(0, 5, image.shape), (0, 0), 0.7), 0, 255
                   ).astype(np.uint8)  # fmt: skip


@pytest.mark.exhaustive
def test_two_exposures_of_a_patient_are_no_copies_but_an_exact_copy_is_one():
    rng = np.random.default_rng(0)
    images = generate("fracture", 40, 160)
    patients = np.arange(42)
    images += [follow_up(images[3], rng), images[5][:, ::-1]]
    patients[40:] = 3, 5
    pairs = {(pair.first, pair.second) for pair in search(images, patients)}
    assert pairs == {(5, 41)}
    all_pairs = find_near_duplicates(Thumbnails.of_images(images), patients)
    assert {pair[:2] for pair in all_pairs if pair.is_exposure} == {(3, 40)}
    patients[40] = 40  # of another patient, this similarity is suspicious
    pairs = {(pair.first, pair.second) for pair in search(images, patients)}
    assert pairs == {(3, 40), (5, 41)}
