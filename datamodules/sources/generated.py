"""A dataset of generated images, for tests and demonstrations without any download."""

from pathlib import Path

from datamodules.manifest import Manifest
from datamodules.phantoms.generate import PhantomSpec, write_dataset
from datamodules.sources.base import Source
from datamodules.sources.table import Table
from datamodules.splits import SplitFractions


class Phantoms(Source):
    """Generated images with known lesions and their boxes, written to disk on first use.

    Args:
        kind: What the images show: fracture, retina, limbs, chest, pneumonia, cardiomegaly,
            osteoporosis, osteoarthritis or limb_abnormality.
        num_patients: Number of patients.
        images_per_patient: Mean number of images per patient.
        image_size: Height and width of the images in pixels.
        seed: Seed of the images and of the split.
        root: Folder to which the images are written.
        val: Fraction of the patients for validation.
        test: Fraction of the patients for test.
    """

    def __init__(
        self,
        kind: str = "fracture",
        num_patients: int = 300,
        images_per_patient: int = 3,
        image_size: int = 64,
        seed: int = 0,
        root: str = "data/phantoms",
        val: float = 0.15,
        test: float = 0.15,
    ) -> None:
        self.spec = PhantomSpec(kind, num_patients, images_per_patient, image_size, seed)
        self.root, self.fractions = Path(root), SplitFractions(val, test, seed)

    def prepare(self) -> None:
        """Writes the images unless their folder exists."""
        write_dataset(self.spec, self.root)

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per image, with the column ``box`` and the attributes of its kind."""
        table = write_dataset(self.spec, self.root) / "manifest.csv"
        source = Table(str(table), "patient", split=None, study="study", fractions=self.fractions)
        return source.manifest(class_names)
