"""The registry of voters; to add one, write its class and fit function, and add an entry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.predictions import PredictionTable
from evaluation.voters import grouped, learned, simple
from evaluation.voters.simple import Voter


@dataclass(frozen=True)
class VoterOptions:
    """What voters may require besides validation tables; `VoterSpec.requirements` names fields."""

    attribute: str = ""  # whose values get weights of their own, such as `body_part`
    attended_values: Sequence[str] = ()  # values of the attribute that get an attention layer
    weights: Sequence[float] | None = None  # fixed weights, one per member

    def __post_init__(self) -> None:
        if self.attended_values and not self.attribute:
            raise ValueError("attended_values are values of an attribute: `attribute` is required")


Fit = Callable[[Sequence[PredictionTable], VoterOptions], Voter]


@dataclass(frozen=True)
class VoterSpec:
    """One voter: how it is named, what it needs and how it is fitted."""

    name: str  # in configs, files and on the command line
    label: str  # in tables and plots
    voter_class: Callable[..., Voter]
    requirements: tuple[str, ...] = ()  # `validation` tables, fields of `VoterOptions`
    fit: Fit | None = None  # None if there is no requirement

    def missing_options(self, options: VoterOptions) -> list[str]:
        """Names of the required options that are not given."""
        return [n for n in self.requirements if n != "validation" and not getattr(options, n)]

    def create(self, tables: Sequence[PredictionTable], options: VoterOptions) -> Voter:
        """The voter, fitted on validation tables where it needs them."""
        if missing := self.missing_options(options):
            raise ValueError(f"voter {self.name!r} needs {missing[0]}")
        return self.voter_class() if self.fit is None else self.fit(tables, options)


VAL = ("validation",)
_SPECS = (
    VoterSpec("soft", "Mean probability", simple.Soft),
    VoterSpec("geometric", "Geometric mean", simple.Geometric),
    VoterSpec("majority", "Majority", simple.Majority),
    VoterSpec("weighted", "Fixed weights", simple.Weighted, ("weights",),
              lambda _, options: simple.Weighted(np.asarray(options.weights, float))),
    VoterSpec("learned", "Learned weights", learned.Learned, VAL,
              lambda t, _: learned.fit_learned(t)),
    VoterSpec("greedy", "Greedy selection", learned.Greedy, VAL,
              lambda t, _: learned.fit_greedy(t)),
    VoterSpec("per_class", "Weights per class", learned.PerClass, VAL,
              lambda t, _: learned.fit_per_class(t)),
    VoterSpec("stacked", "Stacking", learned.Stacked, VAL,
              lambda t, _: learned.fit_stacked(t)),
    VoterSpec("per_group", "Weights per group", grouped.PerGroup, (*VAL, "attribute"),
              lambda t, options: grouped.fit_per_group(t, options.attribute)),
    VoterSpec("group_attention", "Attention per group", grouped.GroupAttention,
              (*VAL, "attribute", "attended_values"),
              lambda t, options: grouped.fit_group_attention(
                  t, options.attended_values, options.attribute)),
)  # fmt: skip
VOTERS: dict[str, VoterSpec] = {spec.name: spec for spec in _SPECS}
#: selects `learned` or `soft`, see `FittedVoters.select`; patients of val required per member
AUTO, AUTO_PATIENTS = "auto", 50


def voter_spec(name: str) -> VoterSpec:
    """The entry of a voter; ValueError, with the known names, if it is unknown."""
    if name not in VOTERS:
        raise ValueError(f"unknown voter {name!r}; known are {', '.join(VOTERS)}")
    return VOTERS[name]


def unfitted_voters() -> list[str]:
    """Names of the voters that need nothing, not even validation tables."""
    return [name for name, spec in VOTERS.items() if not spec.requirements]
