import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules import cache
from datamodules.images import ImageError, read_image
from datamodules.preprocess import Preprocess

SMALL = Preprocess(size=16, clahe=2.0)


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    names = [str(tmp_path / "files" / f"{k}.png") for k in range(6)]
    for k, name in enumerate(names):
        shape = (40, 30) if k % 2 else (40, 30, 3)
        cv2.imwrite(name, rng.integers(0, 255, shape, dtype=np.uint8))
    return names


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def test_cached_pixels_equal_those_of_the_files_and_gray_has_one_channel(paths, root):
    store = cache.open_store(paths, SMALL, root)
    for path in paths:
        assert np.array_equal(store.pixels(path), SMALL.to_pixels(read_image(path)))
    assert store.pixels(paths[1]).shape == (16, 16)
    assert (store.folder / cache.PIXELS).stat().st_size == 16 * 16 * (3 * 1 + 3 * 3)


def test_a_store_is_built_once_and_a_worker_opens_its_own_memory_map(paths, root):
    store = cache.open_store(paths, SMALL, root)
    built = (store.folder / cache.PIXELS).stat().st_mtime_ns
    again = cache.open_store(paths, SMALL, root)
    assert (again.folder / cache.PIXELS).stat().st_mtime_ns == built
    again.pixels(paths[0])
    pickled = pickle.dumps(again)
    assert len(pickled) < 4000
    assert np.array_equal(pickle.loads(pickled).pixels(paths[0]), again.pixels(paths[0]))


def test_settings_of_pixels_change_the_store_but_normalization_does_not(paths, root):
    folder = cache.open_store(paths, SMALL, root).folder
    assert cache.open_store(paths, Preprocess(size=16, clahe=2.5), root).folder != folder
    assert cache.open_store(paths, Preprocess(16, clahe=2.0, mean=(0, 0, 0)), root).folder == folder


def test_a_changed_file_changes_the_store_even_if_its_size_and_time_stay(paths, root):
    old = cache.open_store(paths, SMALL, root)
    stat = Path(paths[0]).stat()
    data = bytearray(Path(paths[2]).read_bytes())
    data += bytes(max(0, stat.st_size - len(data)))
    Path(paths[0]).write_bytes(data[: stat.st_size])
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.open_store(paths, SMALL, root).folder != old.folder


def write_frames(file, seed):
    """Writes a file of two different frames, and returns their names."""
    rng = np.random.default_rng(seed)
    cv2.imwritemulti(str(file), [rng.integers(0, 255, (20, 20), np.uint8) for _ in range(2)])
    return [f"{file}#0", f"{file}#1"]


def test_a_changed_file_changes_the_store_of_all_its_frames(tmp_path, root):
    names = write_frames(tmp_path / "a.tiff", seed=0)
    old = cache.open_store(names, SMALL, root)
    assert not np.array_equal(old.pixels(names[0]), old.pixels(names[1]))
    write_frames(tmp_path / "a.tiff", seed=1)
    new = cache.open_store(names, SMALL, root)
    assert new.folder != old.folder
    for name in names:
        assert np.array_equal(new.pixels(name), SMALL.to_pixels(read_image(name)))


def test_another_code_version_changes_the_store(paths, root, monkeypatch):
    old = cache.open_store(paths, SMALL, root)
    monkeypatch.setattr(cache, "code_version", lambda: "next")
    assert cache.open_store(paths, SMALL, root).folder != old.folder


@pytest.mark.parametrize("name", [cache.PIXELS, cache.INDEX])
def test_a_truncated_store_is_rebuilt(paths, root, name):
    store = cache.open_store(paths, SMALL, root)
    pixels = (store.folder / cache.PIXELS).read_bytes()
    os.truncate(store.folder / name, 100)
    again = cache.open_store(paths, SMALL, root)
    assert (again.folder / cache.PIXELS).read_bytes() == pixels


def test_a_full_disk_leaves_the_old_store_and_no_partial_one(paths, root, monkeypatch):
    old = cache.open_store(paths, SMALL, root)

    def raise_disk_full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        cache.open_store(paths, Preprocess(size=8), root)
    assert [name for name, _, _ in cache.list_stores(root)] == [old.folder.name]
    assert not list(root.glob(".building-*"))
    assert np.array_equal(old.pixels(paths[0]), SMALL.to_pixels(read_image(paths[0])))


@pytest.mark.exhaustive
def test_two_processes_at_once_leave_one_valid_store(paths, root):
    code = (
        "import sys; from pathlib import Path; from datamodules import cache;"
        "from datamodules.preprocess import Preprocess;"
        "cache.open_store(sys.argv[2:], Preprocess(size=16, clahe=2.0), Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(root), *paths]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(cache.list_stores(root)) == 1
    assert not list(root.glob(".building-*"))
    store = cache.open_store(paths, SMALL, root)
    assert np.array_equal(store.pixels(paths[3]), SMALL.to_pixels(read_image(paths[3])))


def test_an_unreadable_file_is_stored_as_a_failure_with_its_name(paths, root):
    Path(paths[4]).write_text("<html>")
    store = cache.open_store(paths, SMALL, root)
    assert list(store.failures) == [paths[4]]
    with pytest.raises(ImageError, match=r"4\.png: begins with b'<html>'"):
        store.pixels(paths[4])


def test_stores_are_listed_and_cleared(paths, root):
    cache.open_store(paths, SMALL, root)
    cache.open_store(paths, Preprocess(size=8), root)
    assert [(count, size) for _, count, size in cache.list_stores(root)]
    assert cache.clear_stores(root) == (2, [])
    assert list(root.iterdir()) == []


def test_clearing_removes_only_files_of_the_cache(paths, root):
    store = cache.open_store(paths, SMALL, root).folder
    (store / "notes.txt").write_text("mine")
    for name in ("website", "a" * 24, ".building-shed"):  # of somebody else
        (root / name).mkdir()
        (root / name / "pixels.txt").write_text("mine")
    for name in ("website", "a" * 24):
        (root / name / cache.INDEX).write_text('{"pages": 3}')
    foreign = {file for file in root.rglob("*") if file.is_file() and store not in file.parents}
    foreign.remove(root / cache.MEMO)
    count, remaining = cache.clear_stores(root)
    assert (count, set(remaining)) == (1, {store, root / ".building-shed"})
    assert {file for file in root.rglob("*") if file.is_file()} == {*foreign, store / "notes.txt"}


def test_a_damaged_memo_of_hashes_is_written_again(paths, root):
    first = cache.open_store(paths, SMALL, root)
    (root / cache.MEMO).write_text('{"0.png": ["12')
    assert cache.open_store(paths, SMALL, root) == first
    assert cache.clear_stores(root) == (1, [])
    assert list(root.iterdir()) == []


def test_colleagues_may_read_a_store_if_the_umask_allows_it(paths, root):
    folder = cache.open_store(paths, SMALL, root).folder
    reference = root / "reference"
    reference.mkdir()
    assert folder.stat().st_mode == reference.stat().st_mode


def test_channel_statistics_are_those_of_all_pixels(paths, root):
    store = cache.open_store(paths, SMALL, root)
    pixels = np.stack([np.atleast_3d(store.pixels(p)) * np.ones(3) for p in paths]) / 255
    mean, std = store.channel_statistics(paths)
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)))
