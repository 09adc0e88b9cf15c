"""What an audit need not compute again, and how much it computes at all."""

import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from datamodules.audit import file_stats, memo, near_duplicates
from datamodules.audit.audit import COMPUTED, Audit, audit_manifest
from datamodules.audit.memo import Memo
from datamodules.audit.near_duplicates import find_near_duplicates
from datamodules.audit.thumbnails import Thumbnails
from datamodules.images import read_image
from datamodules.manifest import Manifest
from datamodules.phantoms.generate import PhantomSpec, generate_images

STEPS = {  # what takes the time of an audit
    "decode": file_stats, "describe": near_duplicates, "coarse_scores": near_duplicates,
    "detail_similarity": near_duplicates,
}  # fmt: skip


@pytest.fixture
def leaky(tmp_path):
    """Files of 24 images, of which two have a copy in another split, and one broken file."""
    images = [image for _, image in generate_images(PhantomSpec("fracture", 24, 1, 64, seed=5))]
    images += [images[3][:, ::-1], 255 - images[7]]
    names = [f"{k}.png" for k in range(len(images))]
    for name, image in zip(names, images, strict=True):
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "broken.png").write_text("no image")
    names.append("broken.png")
    table = pd.DataFrame({"id": names, "path": [str(tmp_path / n) for n in names], "label": 0})
    table["split"] = ["train"] * 24 + ["test"] * 3
    return Manifest(table.assign(patient=names, study=names), ["one"])


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of the steps; those that the test sets to a number end with an error."""
    counts, limits, lock = Counter(), {}, threading.Lock()

    def counted(name, function):
        def call(*args):
            with lock:
                counts[name] += 1
                if counts[name] > limits.get(name, np.inf):
                    raise KeyboardInterrupt
            return function(*args)

        return call

    for name, module in STEPS.items():
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    monkeypatch.setattr(file_stats, "_CHUNK", 8)
    monkeypatch.setattr(near_duplicates, "_REMEMBERED", 32)
    counts.limits = limits
    return counts


def results(audit: Audit) -> tuple:
    return audit.issues, audit.confounds, audit.quarantine().to_csv()


def test_an_audit_of_unchanged_files_computes_nothing_again(leaky, calls, tmp_path):
    expected = results(audit_manifest(leaky, tmp_path / "out"))
    assert calls["describe"] > len(leaky.table)
    calls.clear()
    assert results(audit_manifest(leaky, tmp_path / "out")) == expected
    assert calls == {"decode": 1}  # the broken file, in case that its disk was
    size = sum(file.stat().st_size for file in (tmp_path / "out" / COMPUTED).iterdir())
    assert size < 2000 * len(leaky.table)  # without the pixels


def test_an_experiment_reuses_the_audit_of_init(leaky, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = Path("runs/audit-data")
    expected = results(audit_manifest(leaky, first))
    (first / "audit.json").write_text("{}")  # without it, an audit may still be running
    splits = leaky.table["split"].replace("test", "val")
    calls.clear()
    audit = audit_manifest(replace(leaky, table=leaky.table.assign(split=splits)), Path("other"))
    assert calls == {"decode": 1}
    assert [len(issue.ids) for issue in audit.issues] == [len(issue.ids) for issue in expected[0]]
    shutil.rmtree(first)
    calls.clear()
    audit_manifest(leaky, Path("other"))  # it has its own copies
    assert calls == {"decode": 1}


def test_a_damaged_file_of_another_audit_is_not_used(tmp_path):
    for name, value in (("damaged", 1), ("whole", 2)):
        Memo(tmp_path / name).save("key", np.array([value]))
    file = Memo(tmp_path / "damaged").file("key")
    file.write_bytes(file.read_bytes()[:-1])
    others = [tmp_path / "damaged", tmp_path / "whole"]
    assert Memo(tmp_path / "own", others).load("key", lambda: np.array([3])).tolist() == [2]
    assert Memo(tmp_path / "third", others[:1]).load("key", lambda: np.array([3])).tolist() == [3]


def test_images_are_described_once_although_copies_are_searched_again(leaky, calls, tmp_path):
    assert len(audit_manifest(leaky, tmp_path / "out").quarantine()) == 3
    assert len(list((tmp_path / "out" / COMPUTED).glob("copies-*"))) == 2
    assert calls["describe"] == 2 * 26  # and as many simulated copies
    assert calls["decode"] == len(leaky.table) + 1


@pytest.mark.parametrize(("step", "limit"), [
    ("decode", 20), ("describe", 10), ("coarse_scores", 3), ("detail_similarity", 40),
])  # fmt: skip
def test_an_interrupted_audit_goes_on_where_it_was(leaky, calls, tmp_path, step, limit):
    expected, whole = results(audit_manifest(leaky)), calls.copy()
    assert whole[step] > limit
    calls.clear()
    calls.limits[step] = limit
    with pytest.raises(KeyboardInterrupt):
        audit_manifest(leaky, tmp_path / "out")
    first = calls.copy()
    calls.limits.clear()
    calls.clear()
    assert results(audit_manifest(leaky, tmp_path / "out")) == expected
    again = {"decode": 8, "coarse_scores": 4, "detail_similarity": 110}  # a part that was not saved
    for name, count in again.items():
        assert calls[name] <= whole[name] - first[name] + count
    assert calls["decode"] < whole["decode"]


def test_a_changed_missing_or_new_file_is_read_again(leaky, calls, tmp_path):
    assert len(audit_manifest(leaky, tmp_path / "out").leaks[0].ids) == 4
    file = tmp_path / "10.png"
    for change in (lambda: cv2.imwrite(str(file), 255 - read_image(leaky.table["path"][12])),
                   file.unlink, lambda: shutil.copy2(tmp_path / "11.png", file)):  # fmt: skip
        change()
        expected = results(audit_manifest(leaky))
        assert results(audit_manifest(leaky, tmp_path / "out")) == expected


def test_damaged_results_and_those_of_other_code_are_computed_again(
    leaky, calls, tmp_path, monkeypatch
):
    expected = results(audit_manifest(leaky, tmp_path / "out"))
    files = sorted((tmp_path / "out" / COMPUTED).glob("*.npy"))
    assert files
    for k, file in enumerate(files):
        data = bytearray(file.read_bytes())
        data[-40] ^= 1
        file.write_bytes(data if k % 2 else data[: len(data) // 2])
    calls.clear()
    assert results(audit_manifest(leaky, tmp_path / "out")) == expected
    assert calls["decode"] >= len(leaky.table)
    for module in (file_stats, near_duplicates):
        monkeypatch.setattr(module, "AUDIT_VERSION", "next")
        calls.clear()
        assert results(audit_manifest(leaky, tmp_path / "out")) == expected
        assert calls["decode"] >= len(leaky.table)


def test_source_files_that_change_during_an_audit_do_not_change_its_version(
    leaky, calls, tmp_path, monkeypatch
):
    copy = tmp_path / "datamodules"
    shutil.copytree(Path(memo.__file__).parents[1], copy)
    monkeypatch.setattr(memo, "__file__", str(copy / "audit" / "memo.py"))
    assert memo._hash_sources() == memo.AUDIT_VERSION
    expected = results(audit_manifest(leaky, tmp_path / "out"))
    for name in memo.HASHED_FILES:
        before = memo._hash_sources()
        with (copy / name).open("a") as file:
            file.write("# another line\n")
        assert memo._hash_sources() != before
    calls.clear()
    assert results(audit_manifest(leaky, tmp_path / "out")) == expected
    assert calls == {"decode": 1}


def test_a_file_that_a_disk_could_not_read_is_read_again(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.png"), rng.integers(0, 255, (32, 32), np.uint8))
    ids = [f"{k}.png" for k in range(3)]
    table = pd.DataFrame({"id": ids, "path": [str(tmp_path / name) for name in ids], "label": 0})
    manifest = Manifest(table.assign(split="train", patient=ids, study=ids), ["one"])
    expected = results(audit_manifest(manifest))
    with monkeypatch.context() as failing:
        failing.setattr(np, "fromfile", lambda *_, **__: exec("raise OSError(5, 'I/O error')"))
        assert "I/O error" in str(results(audit_manifest(manifest, tmp_path / "out")))
    assert results(audit_manifest(manifest, tmp_path / "out")) == expected


def test_a_second_audit_in_a_folder_waits_for_the_first(tmp_path):
    is_open = threading.Event()

    def wait() -> None:
        with Memo(tmp_path):
            is_open.set()

    thread = threading.Thread(target=wait)
    with Memo(tmp_path):
        thread.start()
        assert not is_open.wait(0.2)
    thread.join()
    assert is_open.is_set()


def test_every_long_phase_shows_its_progress(leaky, monkeypatch, capsys):
    for name, value in (("_REMEMBERED", 32), ("_BLOCK", 1), ("_TOGETHER", 1)):
        monkeypatch.setattr(near_duplicates, name, value)
    for k in range(12, 23):  # more copies, and so more pairs to compare
        cv2.imwrite(leaky.table["path"][k], 255 - read_image(leaky.table["path"][k - 12]))
    audit_manifest(leaky)
    printed = capsys.readouterr().out
    for phase in ("reading every file", "describing every image", "searching neighbors",
                  "aligning neighbors", "comparing details"):  # fmt: skip
        assert phase in printed


def test_images_that_are_more_alike_than_some_copies_are_compared_with_few_others(monkeypatch):
    """One of two images shows the same bone as all others, with its own noise."""
    images = [image for _, image in generate_images(PhantomSpec("fracture", 40, 1, 160, seed=5))]
    rng, scores, aligned = np.random.default_rng(0), near_duplicates.coarse_scores, []
    for _ in range(40):
        noise = cv2.GaussianBlur(rng.normal(0, 16, images[0].shape), (0, 0), 0.8)
        images.append(np.clip(images[0] + noise, 0, 255).astype(np.uint8))

    def coarse_scores(fixed: np.ndarray, *rest: object) -> np.ndarray:
        aligned.append(len(fixed))
        return scores(fixed, *rest)

    monkeypatch.setattr(near_duplicates, "coarse_scores", coarse_scores)
    monkeypatch.setattr(near_duplicates, "_NUM_RANDOM_PAIRS", 200)
    pairs = find_near_duplicates(Thumbnails.of_images(images), np.arange(80))
    assert not pairs
    # neighbors by Fourier transform and by rings, simulated copies, random pairs
    assert sum(aligned) <= (6 + 2) * 80 + 80 + 200


@pytest.mark.parametrize("count", [1, 6, 40])
def test_nearest_neighbors_are_exact(count):
    rng = np.random.default_rng(0)
    sets = [(rng.normal(size=(5, 32)), rng.normal(size=(9001, 32))) for _ in range(3)]
    sets = [(a.astype(np.float32), b.astype(np.float32)) for a, b in sets]
    distances = near_duplicates._min_squared_distances(sets)
    expected = np.min([np.square(a[:, None] - b).sum(axis=2) for a, b in sets], axis=0)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    nearest = near_duplicates._argsmallest(distances, count)
    assert nearest.tolist() == distances.argsort(axis=1)[:, :count].tolist()
