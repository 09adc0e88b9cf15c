"""Cross-validation by patient: every patient is tested once, by a model that never saw it."""

import hashlib
from dataclasses import dataclass, replace

from datamodules.manifest import Manifest


@dataclass(frozen=True)
class Fold:
    """One part of the patients is the split test, the next part val, all others train.

    The source's own splits are then left behind (samples of the split predict stay there). The
    part of a patient is a function of its name and the seed alone.

    Args:
        part: The part that is tested, from 0.
        of: How many parts there are; 0 leaves the source's own splits.
        seed: Another seed, other parts.
    """

    part: int = 0
    of: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of in (1, 2) or self.of < 0:
            raise ValueError(f"fold.of is {self.of}; allowed are 0 for none, and 3 or more")
        if not 0 <= self.part < max(1, self.of):
            raise ValueError(f"fold.part is {self.part}; allowed are 0 to {max(0, self.of - 1)}")

    def applied(self, manifest: Manifest) -> Manifest:
        """The manifest with the splits of this part."""
        if not self.of:
            return manifest
        table, splits = manifest.table, {self.part: "test", (self.part + 1) % self.of: "val"}
        parts = [part_of(patient, self.of, self.seed) for patient in table["patient"]]
        moved = [
            before if before == "predict" else splits.get(part, "train")
            for before, part in zip(table["split"], parts, strict=True)
        ]
        return replace(manifest, table=table.assign(split=moved))


def part_of(patient: str, parts: int, seed: int = 0) -> int:
    """The part of a patient, 0 to `parts` - 1: a rule that each answers alone."""
    digest = hashlib.sha256(f"fold/{seed}/{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * parts >> 64
