"""Gates (limits that metrics must reach) and claims (published values) of an experiment."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from consilium.experiments.config import ENSEMBLE, MEMBERS, Claim, ExperimentConfig
from consilium.experiments.plan import rounds
from evaluation.metrics.registry import matching_specs
from evaluation.reports import html
from evaluation.results import Results
from evaluation.stats.estimate import Estimate

Runs = Mapping[str, Results]
CLAIMS_NOTE = (
    "A value above the believable range is more likely to come from a data leak than from a "
    "better model: run consilium audit."
)


@dataclass(frozen=True)
class CheckedClaim:
    """A claim about one metric of one run, and the estimate; None if the run is not done."""

    name: str
    metric: str
    claim: Claim
    estimate: Estimate | None

    @property
    def position(self) -> str:
        """`below`, `within` or `above` the believable range, or `not measured`."""
        if self.estimate is None or self.estimate.value is None:
            return "not measured"
        low, high = self.claim.believable
        value = self.estimate.value
        return "below" if value < low else "above" if value > high else "within"


def run_names(config: ExperimentConfig, who: str) -> list[str]:
    """Runs of `ensemble`, of `members`, or of one member or ensemble, in all rounds."""
    groups = {ENSEMBLE: list(config.ensembles), MEMBERS: list(config.members)}
    names = [who] if who in config.ensembles else groups.get(who, [who])
    return [name + each_round.suffix for each_round in rounds(config) for name in names]


def find_estimates(config: ExperimentConfig, name: str, runs: Runs) -> dict[str, Estimate | None]:
    """Estimates by RUN.METRIC that `WHO.METRIC` matches; None for a run that is not done.

    METRIC may contain `*`: `recall/*` is the recall of every class.
    """
    who, pattern = name.split(".", 1)
    estimates: dict[str, Estimate | None] = {}
    for run in run_names(config, who):
        metrics = runs[run].metrics if run in runs else {pattern: None}
        matches = [metric for metric in metrics if fnmatchcase(metric, pattern)]
        if not matches:
            raise ValueError(f"{name}: no metric {pattern!r} in the results of {run}")
        estimates |= {f"{run}.{metric}": metrics[metric] for metric in matches}
    return estimates


def evaluate_gates(config: ExperimentConfig, runs: Runs) -> list[html.Gate]:
    """Every gate; one of several estimates passes if the worst of them does."""
    return [_evaluate_gate(config, name, limit, runs) for name, limit in config.gates.items()]


def _evaluate_gate(config: ExperimentConfig, name: str, limit: float, runs: Runs) -> html.Gate:
    estimates = find_estimates(config, name, runs)
    values = {at: e.value for at, e in estimates.items() if e is not None and e.value is not None}
    is_upper = not matching_specs(name.partition(".")[2])[0].higher_is_better
    required = f"at {'most' if is_upper else 'least'} {limit:g}"
    if not values:
        return html.Gate(name, required, "not measured", False)
    worst = (max if is_upper else min)(values, key=lambda at: values[at])
    measured = f"{values[worst]:.4f}" + (f" ({worst})" if len(estimates) > 1 else "")
    missing = len(estimates) - len(values)
    measured += f", {missing} not measured" if missing else ""
    reaches = values[worst] <= limit if is_upper else values[worst] >= limit
    return html.Gate(name, required, measured, reaches and not missing)


def check_claims(config: ExperimentConfig, runs: Runs) -> list[CheckedClaim]:
    """Every claim with each estimate that it is about."""
    return [
        CheckedClaim(name, metric, claim, estimate)
        for name, claim in config.claims.items()
        for metric, estimate in find_estimates(config, name, runs).items()
    ]


def claims_section(claims: list[CheckedClaim]) -> list[html.Section]:
    """A table of claimed, believable and measured values."""
    rows: list[tuple[html.Cell, ...]] = [
        (
            checked.metric,
            checked.claim.claimed,
            "{:g} to {:g}".format(*checked.claim.believable),
            checked.estimate,
            checked.position,
            checked.claim.why,
        )
        for checked in claims
    ]
    columns = ("metric", "claimed", "believable", "measured", "", "why")
    return [html.Table(columns, rows, "Claims", CLAIMS_NOTE)] if rows else []
