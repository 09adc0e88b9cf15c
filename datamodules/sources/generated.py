"""Pictures that are drawn, and need not be had from anybody."""

from pathlib import Path

from datamodules.manifest import Manifest
from datamodules.phantoms.generate import Recipe, written
from datamodules.sources.source import Source
from datamodules.sources.table import Table
from datamodules.splits import Fractions


class Phantoms(Source):
    """Generated pictures with known lesions, made on first use; nothing is fetched.

    Args:
        kind: What is drawn: a name of ``phantoms.KINDS``, such as ``fracture`` or ``retina``.
        patients: How many patients there are.
        films: How many pictures a patient has in the mean.
        size: Side of the pictures in pixels.
        seed: Another seed, other pictures.
        root: The folder in which the pictures are kept.
        val: Share of the patients that validation gets.
        test: Share of the patients that test gets.
    """

    def __init__(
        self,
        kind: str = "fracture",
        patients: int = 300,
        films: int = 3,
        size: int = 64,
        seed: int = 0,
        root: str = "data/phantoms",
        val: float = 0.15,
        test: float = 0.15,
    ) -> None:
        self.recipe = Recipe(kind, patients, films, size, seed)
        self.root, self.fractions = Path(root), Fractions(val, test, seed)

    def prepare(self) -> None:
        """Draws the pictures unless the folder is there."""
        written(self.recipe, self.root)

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row a picture, with the column ``box`` and what else its kind says."""
        table = written(self.recipe, self.root) / "manifest.csv"
        source = Table(str(table), "patient", split=None, study="study", fractions=self.fractions)
        return source.manifest(class_names)
