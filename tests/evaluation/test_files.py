from pathlib import Path

import pytest

from evaluation.files import atomic_file, remove_unfinished, unique_file_names


def test_images_of_one_name_have_different_file_names() -> None:
    names = unique_file_names(["a/scan.png", "b/scan.png", "scan.dcm#3", "scan.png", "scan.png"])
    assert names == ["a-scan", "b-scan", "scan-3", "scan", "scan-2"]
    names = unique_file_names(["scan.png", "scan.png", "scan-2.png", "scan.png", "scan-2.png"])
    assert names == ["scan", "scan-2", "scan-2-2", "scan-3", "scan-2-3"]


@pytest.mark.parametrize("name", ["last.ckpt", "[fold 1] *?.ckpt", "n" * 200])
def test_unfinished_files_of_any_name_are_removed_and_no_others(name: str, tmp_path: Path) -> None:
    with atomic_file(tmp_path / name):
        [unfinished] = tmp_path.iterdir()
    others = [tmp_path / f".{name[:90]}.notes", tmp_path / ".other.0123abcd"]
    for file in (unfinished, *others):
        file.touch()
    remove_unfinished(tmp_path / name)
    assert set(tmp_path.iterdir()) == {*others, tmp_path / name}
