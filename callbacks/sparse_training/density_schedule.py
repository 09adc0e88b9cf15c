"""When the masks of stage 2 shrink."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DensitySchedule:
    """How the density falls: cubically, and then not at all.

    Args:
        share: the part of stage 2, from its start, in which it falls; 0 prunes once, at its first
            step.
        updates: in so many steps.
        regrow: at each of them but the last this share of the kept numbers, falling to 0 like a
            cosine, is exchanged for those whose gradients are largest.
    """

    share: float = 0.5
    updates: int = 20
    regrow: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0 <= self.share < 1:
            raise ValueError(f"ramp.share: {self.share} is not at least 0 and below 1")
        if self.updates < 1:
            raise ValueError(f"ramp.updates: {self.updates} is not at least 1")
        if not 0 <= self.regrow < 1:
            raise ValueError(f"ramp.regrow: {self.regrow} is not at least 0 and below 1")

    def due(self, step: int, steps: int) -> int:
        """How many updates belong before step `step` (from 0) of a stage of `steps` steps."""
        length = int(self.share * steps)
        return sum(i * length // self.many(steps) <= step for i in range(1, self.many(steps) + 1))

    def many(self, steps: int) -> int:
        """How many updates a stage of `steps` steps has."""
        return max(1, min(self.updates, int(self.share * steps)))
