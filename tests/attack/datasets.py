"""Malformed tables and folders of images."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

CLASSES = ["a", "b"]
CELLS = ("", " ", "nan", "../x.png", "/etc/passwd", "a\nb", "\u00a0", "=1+1", "1e999", "-1", "0.5",
         "é" * 500, "\0", '"', "#0", "0.png#7", "https://example.com/x.png")  # fmt: skip


def write_images(folder: Path, count: int = 8) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 255, (24, 24), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.GaussianBlur(pixels, (0, 0), 2))
    return [f"{i}.png" for i in range(count)]


def malformed_tables(folder: Path, count: int) -> Iterator[Path]:
    """Tables with odd cells, missing or repeated columns, other encodings, and changed bytes."""
    names, rng = write_images(folder), np.random.default_rng(4)
    table = pd.DataFrame({
        "path": names, "label": [CLASSES[i % 2] for i in range(8)],
        "split": ["train", "train", "train", "train", "val", "val", "test", "test"],
        "patient": [f"p{i}" for i in range(8)],
    })  # fmt: skip
    for number in range(count):
        own, file = table.copy(), folder / f"table{number}.csv"
        kind = number % 6
        if kind < 3:
            for _ in range(rng.integers(1, 6)):
                cell = CELLS[rng.integers(len(CELLS))]
                own.iloc[rng.integers(8), rng.integers(4)] = cell
        elif kind == 3:
            own = own.drop(columns=own.columns[rng.integers(4)])
        data = own.to_csv(index=False, sep=",;\t|"[rng.integers(4)]).encode()
        if kind == 4:
            at = int(rng.integers(len(data)))
            data = data[:at] + rng.bytes(9) + data[at:]
        elif kind == 5:
            odd = (b"", b"\n\n", b"path", data.decode().encode("utf-16"), data.replace(b",", b""),
                   data[: len(data) // 2], data + data, b"\xef\xbb\xbf" + data, bytes(500),
                   data.replace(b"label", b"path"))  # fmt: skip
            data = odd[(number // 6) % len(odd)]
        file.write_bytes(data)
        if kind == 3 and rng.random() < 0.5:
            file = file.with_suffix(".parquet")
            file.write_bytes(data) if rng.random() < 0.5 else own.to_parquet(file)
        yield file


def malformed_folders(folder: Path) -> Iterator[Path]:
    """Twenty folders of images with something odd in each."""
    for number in range(20):
        root = folder / f"folder{number}"
        for name in CLASSES:
            write_images(root / name, 4)
        odd_changes(root, root / "a" / "odd.png")[number]()
        yield root


def odd_changes(root: Path, odd: Path) -> tuple[Callable[[], object], ...]:
    """One change of a folder each; `odd` is the path of a file that does not exist."""
    return (
        lambda: None,
        lambda: odd.write_bytes(b""),
        lambda: odd.write_bytes(b"text"),
        lambda: odd.mkdir(),
        lambda: odd.symlink_to(odd),
        lambda: odd.symlink_to("/dev/zero"),
        lambda: odd.symlink_to("/etc/passwd"),
        lambda: (root / "a" / "loop").symlink_to(root),
        lambda: os.mkfifo(odd),
        lambda: (root / "c").mkdir(),
        lambda: (root / "0.png").write_bytes((root / "a" / "0.png").read_bytes()),
        lambda: Path(os.fsdecode(os.fsencode(root / "a") + b"/\xff.png")).write_bytes(b"x"),
        lambda: (root / "a" / "a\nb.png").write_bytes((root / "a" / "0.png").read_bytes()),
        lambda: (root / "a" / "x#1.png").write_bytes((root / "a" / "0.png").read_bytes()),
        lambda: (root / "a" / "1.png").write_bytes((root / "a" / "1.png").read_bytes()[:60]),
        lambda: (root / "b").rename(root / "B b"),
        lambda: (root / "train").mkdir(),
        lambda: (root / ".hidden.png").write_bytes(b"x"),
        lambda: [p.unlink() for p in (root / "b").iterdir()],
        lambda: [p.unlink() for p in root.rglob("*.png")],
    )
