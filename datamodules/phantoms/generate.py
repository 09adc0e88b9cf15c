"""Generated pictures with known lesions, drawn once and then read like any other folder."""

import csv
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from datamodules.phantoms import chest, fundus, limbs, long_bones
from datamodules.phantoms.drawing import Dice, Drawn

Draw = Callable[[int, Dice, Dice, int], Drawn]


@dataclass(frozen=True)
class Kind:
    """What is drawn.

    Args:
        classes: The class names, in the order of the labels.
        draw: Makes one film from label, the patient's chance, the film's chance and the size.
        shares: How frequent each class is among the studies.
        films_a_study: How many films a study has at most.
    """

    classes: list[str]
    draw: Draw
    shares: tuple[int, ...]
    films_a_study: int = 1_000


def _binary(name: str, draw: Draw) -> Kind:
    return Kind(["normal", name], draw, (1, 1))


KINDS: dict[str, Kind] = {
    "fracture": Kind(long_bones.FRACTURES, long_bones.fracture, (1, 1, 1)),
    "retina": Kind(fundus.GRADES, fundus.retina, (50, 15, 20, 8, 7)),
    "limbs": Kind(["negative", "positive"], limbs.limb, (3, 2), films_a_study=3),
    "chest": Kind(chest.DISEASES, chest.chest, (4, 2, 4, 3)),
    "pneumonia": _binary("pneumonia", chest.pneumonia),
    "cardiomegaly": _binary("cardiomegaly", chest.cardiomegaly),
    "osteoporosis": _binary("osteoporosis", limbs.osteoporosis),
    "osteoarthritis": _binary("osteoarthritis", limbs.osteoarthritis),
    "limb_abnormality": _binary("limb_abnormality", limbs.limb),
}
SOURCES = ("generate.py", "drawing.py", "long_bones.py", "limbs.py", "chest.py", "fundus.py")


@dataclass(frozen=True)
class Recipe:
    """All that decides the pixels.

    Args:
        kind: A name of ``KINDS``.
        patients: How many patients.
        films: Mean number of pictures a patient; each has from 1 to 2 * films - 1.
        size: Side in pixels.
        seed: Another seed, other pictures.
    """

    kind: str
    patients: int
    films: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed are {sorted(KINDS)}")
        if self.size < 32:
            raise ValueError(f"size is {self.size}; it must be at least 32")
        for name in ("patients", "films"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def folder(self) -> str:
        """The name of the folder that holds these pictures, the drawing code's version in it."""
        count = f"{self.patients}p-{self.films}f"
        return f"{self.kind}-{self.size}px-{count}-seed{self.seed}-{code_version()}"


def code_version() -> str:
    """Eight hexadecimal digits that change whenever the drawing code does."""
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    return hashlib.sha256(code).hexdigest()[:8]


def written(recipe: Recipe, root: Path) -> Path:
    """The folder with the pictures and ``manifest.csv``, drawn now unless it is there."""
    target = root / recipe.folder
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{recipe.folder}-", dir=root))
    try:
        _write(recipe, making)
        _moved(making, target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def films(recipe: Recipe) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Every row of the manifest with its picture, one after another."""
    kind = KINDS[recipe.kind]
    for number in range(recipe.patients):
        patient = f"p{number:05d}"
        text = f"{recipe.kind}/{recipe.seed}/{patient}"
        count = Dice(text).between(1, 2 * recipe.films - 1)
        for film in range(count):
            study = f"{patient}-s{1 + film // kind.films_a_study}"
            label = Dice(f"{recipe.kind}/{recipe.seed}/{study}/label").share(*kind.shares)
            body, pose = Dice(f"{text}/body"), Dice(f"{text}/{film}")
            drawn = kind.draw(label, body, pose, recipe.size)
            yield _row(patient, study, film, kind.classes[label], drawn), drawn.pixels


def _row(patient: str, study: str, film: int, label: str, drawn: Drawn) -> dict[str, str]:
    path = f"{patient}/{study}-film{film}.png"
    row = {"path": path, "label": label, "patient": patient, "study": study, "box": drawn.box}
    return row | drawn.attributes


def _write(recipe: Recipe, folder: Path) -> None:
    rows = []
    total = recipe.patients * recipe.films
    drawn = track(films(recipe), description=f"drawing {recipe.kind} pictures", total=total)
    for row, pixels in drawn:
        path = folder / row["path"]
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])
        rows.append(row)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _moved(making: Path, target: Path) -> None:
    """Gives the folder its name; another process that was faster drew the same pictures."""
    try:
        making.replace(target)
    except OSError:
        if not target.is_dir():
            raise
