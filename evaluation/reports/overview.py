"""The first screen of a report: what the model is, how good, on whom, and what limits it."""

from collections.abc import Mapping, Sequence

from evaluation.metrics.clinical import outcome_members, shown_outcomes, use_of
from evaluation.metrics.operating_points import OperatingPoints
from evaluation.metrics.subgroups import ONE_CLASS, class_attributes
from evaluation.predictions import PredictionTable, row_unit
from evaluation.reports.html import (
    Overview,
    format_count,
    format_estimate,
    format_percent,
)
from evaluation.stats.estimate import Estimate, Estimates

FEW_PATIENTS = 100  # with the outcome or without: fewer give wide intervals and unsure calibration
DECIMALS = 3
NO_ATTRIBUTES = "Not measured: the images have no attributes."
ONE_DATASET = (
    "One dataset. On images of another hospital: consilium test RUN --data OTHER --name NAME."
)


def overview(
    what: str,
    metrics: Estimates,
    table: PredictionTable,
    points: OperatingPoints,
    groups: Sequence[str] = (),
    notes: Sequence[str] = (ONE_DATASET,),
) -> Overview:
    """Questions and answers for the first screen; `groups` are sentences about worse groups."""
    outcome, classes = shown_outcomes(table)[0], _alternatives(table.class_names)
    how_good = _performance(metrics, table, points, outcome)
    answers = {"What is it?": [f"{what} that answers {classes}."],
               f"How good is it for {outcome}?": how_good}  # fmt: skip
    return Overview({**answers, **about_data(table, groups, notes)})


def about_data(
    table: PredictionTable, groups: Sequence[str], notes: Sequence[str]
) -> dict[str, Sequence[str]]:
    """Answers by question: measured on whom, for whom it is worse, what limits it."""
    outcome, labeled = shown_outcomes(table)[0], table.labeled
    patients, unit = format_count(len(set(labeled.patients)), "patients"), row_unit(table)
    sample = f"{format_count(len(labeled), unit)} of {patients}" * (unit != "patients") or patients
    split = table.rows["split"].iloc[0]
    left_out = [f"Not compared by {name}: {ONE_CLASS}." for name in class_attributes(labeled)]
    return {
        "Measured on whom?": [f"{sample} of the {split} split; {_prevalence(table, outcome)}."],
        "For whom is it worse?": [*groups, *left_out] or [NO_ATTRIBUTES],
        "What limits it?": [*_limits(table, outcome), *notes],
    }


def _alternatives(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _performance(
    metrics: Mapping[str, Estimate], table: PredictionTable, points: OperatingPoints, outcome: str
) -> list[str]:
    """Sentences on accuracy, AUROC, calibration, net benefit and decisions, as far as known."""
    lines = [f"Accuracy {format_percent(metrics['accuracy'])}."]
    auroc = metrics.get(f"auroc/{outcome}", metrics.get("auroc"))
    if auroc:
        lines.append(
            f"AUROC {format_estimate(auroc, DECIMALS)}: 1 separates perfectly, 0.5 is chance."
        )
    slope = metrics.get(f"calibration_slope/{outcome}")
    if slope and slope.value is None:
        lines.append(f"Calibration slope not measured: {slope.reason}.")
    elif slope:
        lines.append(
            f"Calibration slope {format_estimate(slope, DECIMALS)}: 1 is ideal; below 1, "
            "probabilities are too extreme."
        )
    benefit, over_all = (metrics.get(f"{name}/{outcome}")
                         for name in ("net_benefit", "net_benefit_over_all"))  # fmt: skip
    if benefit and benefit.value is not None and over_all and over_all.value is not None:
        of_all = benefit.value - over_all.value
        lines.append(
            f"Net benefit at {100 * use_of(table).threshold:g} %: "
            f"{format_estimate(benefit, DECIMALS)}; treating everyone has {of_all:.3f}, treating "
            "no one 0."
        )
    rule = next((name for name in points.get(outcome, {}) if "sensitivity" in name), None)
    if rule:
        decided = points[outcome][rule]
        sensitivity, specificity = (
            decided.get(f"{name}/{outcome}") for name in ("recall", "specificity")
        )
        if sensitivity and specificity:
            lines.append(
                f"Above the probability {rule}: finds {format_percent(sensitivity)} of {outcome} "
                f"(sensitivity), spares {format_percent(specificity)} of the others (specificity)."
            )
    return lines


def _prevalence(table: PredictionTable, outcome: str) -> str:
    """`fracture in 66.0 %`."""
    labels = table.labeled.labels
    is_outcome = sum((labels == label).sum() for label in outcome_members(table)[outcome])
    return f"{outcome} in {100 * is_outcome / max(1, len(labels)):.1f} %"


def _limits(table: PredictionTable, outcome: str) -> list[str]:
    """A sentence for each kind of patients, with or without the outcome, that are too few."""
    labeled, members = table.labeled, outcome_members(table)[outcome]
    is_outcome = [label in members for label in labeled.labels]
    limits = []
    for kind, name in ((True, f"with {outcome}"), (False, f"without {outcome}")):
        patients = {p for p, is_ in zip(labeled.patients, is_outcome, strict=True) if is_ == kind}
        if len(patients) < FEW_PATIENTS:
            count = format_count(len(patients), "patients")
            limits.append(f"{count} {name}; {FEW_PATIENTS} or more are advised.")
    return limits
