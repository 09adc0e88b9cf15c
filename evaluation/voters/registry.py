"""The registry of voters: how each is named, what it needs and how it is fitted.

Whatever fits, shows, stores, loads or serves a voter reads its entry. To add a voter, write its
class (see `Voter`) and its fit function, and add one entry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.predictions import PredictionTable
from evaluation.voters.grouped import GroupAttention, PerGroup, fit_group_attention, fit_per_group
from evaluation.voters.learned import (
    Greedy,
    Learned,
    PerClass,
    Stacked,
    fit_greedy,
    fit_learned,
    fit_per_class,
    fit_stacked,
)
from evaluation.voters.simple import Geometric, Majority, Soft, Voter, Weighted


@dataclass(frozen=True)
class VoterOptions:
    """What a user can give to voters besides validation tables; the fields are requirements.

    Args:
        attribute: attribute whose values get weights of their own, such as `body_part`.
        attended_values: values of the attribute that get an attention layer.
        weights: fixed weights, one per member.
    """

    attribute: str = ""
    attended_values: Sequence[str] = ()
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.attended_values and not self.attribute:
            raise ValueError("attended_values are values of an attribute: `attribute` is required")


Fit = Callable[[Sequence[PredictionTable], VoterOptions], Voter]


@dataclass(frozen=True)
class VoterSpec:
    """One voter: how it is named, what it needs and how it is fitted.

    How a voter weighs its members and which attribute it reads stand in its class (`Voter`).
    `requirements` are `validation` tables, or the `VoterOptions` that must be given; `fit` makes
    the voter from tables and options, and is None if the voter needs nothing.
    """

    name: str  # in configs, files and on the command line
    label: str  # in tables and plots
    voter_class: Callable[..., Voter]
    requirements: tuple[str, ...] = ()
    fit: Fit | None = None

    def missing_options(self, options: VoterOptions) -> list[str]:
        """The required options that are not given."""
        required = [name for name in self.requirements if name != "validation"]
        return [name for name in required if not getattr(options, name)]

    def create(self, tables: Sequence[PredictionTable], options: VoterOptions) -> Voter:
        """The voter, fitted on validation tables where it needs them."""
        missing = self.missing_options(options)
        if missing:
            raise ValueError(f"voter {self.name!r} needs {missing[0]}")
        return self.voter_class() if self.fit is None else self.fit(tables, options)


VAL = ("validation",)
_SPECS = (
    VoterSpec("soft", "Mean probability", Soft),
    VoterSpec("geometric", "Geometric mean", Geometric),
    VoterSpec("majority", "Majority", Majority),
    VoterSpec("weighted", "Fixed weights", Weighted, ("weights",),
              lambda tables, options: Weighted(np.asarray(options.weights, float))),
    VoterSpec("learned", "Learned weights", Learned, VAL, lambda t, _: fit_learned(t)),
    VoterSpec("greedy", "Greedy selection", Greedy, VAL, lambda t, _: fit_greedy(t)),
    VoterSpec("per_class", "Weights per class", PerClass, VAL, lambda t, _: fit_per_class(t)),
    VoterSpec("stacked", "Stacking", Stacked, VAL, lambda t, _: fit_stacked(t)),
    VoterSpec("per_group", "Weights per group", PerGroup, (*VAL, "attribute"),
              lambda t, options: fit_per_group(t, options.attribute)),
    VoterSpec("group_attention", "Attention per group", GroupAttention,
              (*VAL, "attribute", "attended_values"),
              lambda t, options: fit_group_attention(
                  t, options.attended_values, options.attribute)),
)  # fmt: skip
VOTERS: dict[str, VoterSpec] = {spec.name: spec for spec in _SPECS}


def voter_spec(name: str) -> VoterSpec:
    """The entry of a voter; an unknown name is an error that lists the known ones."""
    if name not in VOTERS:
        raise ValueError(f"unknown voter {name!r}; known are {', '.join(VOTERS)}")
    return VOTERS[name]


def unfitted_voters() -> list[str]:
    """Names of the voters that need nothing, not even validation tables."""
    return [name for name, spec in VOTERS.items() if not spec.requirements]
