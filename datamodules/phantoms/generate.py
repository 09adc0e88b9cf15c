"""Datasets of generated images with known lesions, written to disk once."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
import pandas as pd
from rich.progress import track

from datamodules.phantoms import bones, organs
from datamodules.phantoms.primitives import PhantomImage, Rng

Generator = Callable[[int, Rng, Rng, int], PhantomImage]  # label, rng of patient, of image, size


SEPARATOR, NO_FINDING = "|", "No Finding"  # in labels, as in those of NIH's chest radiographs


@dataclass(frozen=True)
class PhantomKind:
    """A kind of generated images."""

    classes: list[str]  # in the order of the labels
    generate: Generator
    class_weights: tuple[int, ...]  # relative frequency of each class among the studies
    images_per_study: int = 1_000  # at most

    def sample_label(self, rng: Rng) -> tuple[int, str]:
        """A random label, and its text."""
        label = rng.choice(*self.class_weights)
        return label, self.classes[label]


class FindingsKind(PhantomKind):
    """Images that may have several of the `classes`; their weights are percentages of the studies.

    Bit k of a label tells whether the image has class k.
    """

    def sample_label(self, rng: Rng) -> tuple[int, str]:
        """A random label, and its text, such as `effusion|nodules` or `No Finding`."""
        present = [rng.choice(100 - percent, percent) for percent in self.class_weights]
        names = [name for name, is_present in zip(self.classes, present, strict=True) if is_present]
        label = sum(is_present << k for k, is_present in enumerate(present))
        return label, SEPARATOR.join(names) or NO_FINDING


def _binary(name: str, generate: Generator) -> PhantomKind:
    """A kind with the equally frequent classes normal and ``name``."""
    return PhantomKind(["normal", name], generate, (1, 1))


KINDS: dict[str, PhantomKind] = {
    "fracture": PhantomKind(bones.FRACTURES, bones.fracture, (1, 1, 1)),
    "retina": PhantomKind(organs.GRADES, organs.retina, (50, 15, 20, 8, 7)),
    "limbs": PhantomKind(["negative", "positive"], bones.limb, (3, 2), images_per_study=3),
    "chest": PhantomKind(organs.DISEASES, organs.chest, (4, 2, 4, 3)),
    "chest_findings": FindingsKind(organs.FINDINGS, organs.chest_findings, (30, 25, 25, 20, 20)),
    "pneumonia": _binary("pneumonia", organs.pneumonia),
    "cardiomegaly": _binary("cardiomegaly", organs.cardiomegaly),
    "osteoporosis": _binary("osteoporosis", bones.osteoporosis),
    "osteoarthritis": _binary("osteoarthritis", bones.osteoarthritis),
    "limb_abnormality": _binary("limb_abnormality", bones.limb),
}
HASHED_FILES = ("generate.py", "primitives.py", "bones.py", "organs.py")


@dataclass(frozen=True)
class PhantomSpec:
    """Everything that the pixels of a generated dataset depend on."""

    kind: str  # a name in ``KINDS``
    num_patients: int
    images_per_patient: int  # mean; a patient has from 1 to twice as many minus 1
    image_size: int  # height and width in pixels
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed are {sorted(KINDS)}")
        for name, minimum in (("num_patients", 1), ("images_per_patient", 1), ("image_size", 32)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {minimum}")

    @property
    def folder(self) -> str:
        """Name of the folder of these images, with the version of the code that makes them."""
        count = f"{self.num_patients}p-{self.images_per_patient}i"
        return f"{self.kind}-{self.image_size}px-{count}-seed{self.seed}-{code_version()}"


def code_version() -> str:
    """Eight hexadecimal digits: a hash of the code that generates images."""
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in HASHED_FILES)
    return hashlib.sha256(code).hexdigest()[:8]


def write_dataset(spec: PhantomSpec, root: Path) -> Path:
    """The folder with the images and ``manifest.csv``; writes it if it does not exist."""
    folder = root / spec.folder
    if folder.is_dir():
        return folder
    temporary = root / f".{spec.folder}-{uuid4().hex[:8]}"
    temporary.mkdir(parents=True)  # not by tempfile: colleagues may read it if the umask allows it
    rows, total = [], spec.num_patients * spec.images_per_patient
    images = track(generate_images(spec), f"generating {spec.kind} images", total=total)
    try:
        for row, pixels in images:
            path = temporary / row["path"]
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])
            rows.append(row)
        pd.DataFrame(rows).to_csv(temporary / "manifest.csv", index=False)
        temporary.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def generate_images(spec: PhantomSpec) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Yields each row of the manifest with the pixels of its image."""
    kind = KINDS[spec.kind]
    for number in range(spec.num_patients):
        patient = f"p{number:05d}"
        seed = f"{spec.kind}/{spec.seed}/{patient}"
        for k in range(Rng(seed).between(1, 2 * spec.images_per_patient - 1)):
            study = f"{patient}-s{1 + k // kind.images_per_study}"
            label, text = kind.sample_label(Rng(f"{spec.kind}/{spec.seed}/{study}/label"))
            image = kind.generate(label, Rng(f"{seed}/body"), Rng(f"{seed}/{k}"), spec.image_size)
            row = {"path": f"{patient}/{study}-image{k}.png", "label": text}
            row |= {"patient": patient, "study": study, "box": image.box}
            yield row | image.attributes, image.pixels
