"""Sections about groups of images: metrics, differences to all others, equalized odds."""

from collections.abc import Mapping, Sequence

from evaluation.metrics.registry import METRICS, metric_label
from evaluation.metrics.subgroups import ODDS, decision_threshold
from evaluation.plots.subgroups import forest_plot
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.stats.estimate import Estimates
from evaluation.stats.groups import MIN_PATIENTS
from evaluation.subgroups import Subgroup, flagged_gaps, worst_group

HEADING = "Subgroups"
PANELS = 5  # metrics in the plot
SHOWN = 3  # groups in the sentence, and metrics of each
MAX_ROWS = 30  # differences in the table
NOTE = (
    f"A group needs {MIN_PATIENTS} patients. Groups may differ in how difficult their images are, "
    "or in how frequent each class is: a difference is not by itself a bias of the model."
)
GAPS_NOTE = (
    "Group minus all other images with a value of the attribute; intervals are not corrected. p is "
    "corrected by Holm over all groups, for accuracy and AUROC together, sensitivity and "
    "specificity together, and calibration; it is doubled if there are intersections."
)


def subgroup_sentence(subgroups: Sequence[Subgroup]) -> str:
    """A sentence: for which groups the model is worse than for all others; "" without subgroups."""
    compared = [s for s in subgroups if s.gaps]
    if not compared:
        return f"No group has {MIN_PATIENTS} patients to be compared." if subgroups else ""
    flagged = flagged_gaps(subgroups)
    if not flagged:
        smallest = html.format_count(min(s.patients for s in compared), "patients")
        crossed = sum(s.is_intersection for s in compared)
        count = html.format_count(len(compared) - crossed, "groups")
        tested = f"{count} and {html.format_count(crossed, 'intersections')}" if crossed else count
        return f"No difference between groups was shown ({tested} tested, the smallest {smallest})."
    worse = [(s, metric) for s, metric in flagged if s.is_worse(metric)]
    by_group: dict[str, list[str]] = {}
    for s, metric in worse or flagged:
        gap = html.format_estimate(s.gaps[metric].estimate, sign="+")
        by_group.setdefault(s.name, []).append(f"{metric_label(metric)} {gap}")
    parts = [f"{name} ({'; '.join(gaps[:SHOWN])})" for name, gaps in by_group.items()][:SHOWN]
    more = f" and {len(by_group) - SHOWN} more groups" if len(by_group) > SHOWN else ""
    start = "Worse" if worse else "Better"
    return f"{start} than for all other images: {', '.join(parts)}{more}."


def subgroup_sentences(models: Mapping[str, Sequence[Subgroup]]) -> list[str]:
    """`<model>: <subgroup_sentence>` of each model with groups."""
    return [f"{name}: {subgroup_sentence(groups)}" for name, groups in models.items() if groups]


def subgroup_sections(
    subgroups: Sequence[Subgroup], metrics: Estimates, table: PredictionTable, name: str = "",
) -> list[html.Section]:  # fmt: skip
    """The plot, the worst group, differences, equalized odds and tables; nothing without groups."""
    if not subgroups:
        return []
    single = [s for s in subgroups if not s.is_intersection]
    names, threshold = list(subgroups[0].metrics), decision_threshold(table)
    decided = "the largest probability" if threshold is None else f"the probability {threshold:g}"
    caption = (
        "Patients in parentheses; lines are 95 % confidence intervals, the vertical line is the "
        "value of all images. A square: the difference to all others is significant after "
        f"correction. Sensitivity and specificity are of decisions by {decided}. {NOTE}"
    )
    others = [s for s in subgroups if s.is_intersection]
    of = f": {name}" if name else ""
    return [
        html.Plot(forest_plot(single, names[:PANELS], name), caption, f"{HEADING}{of}"),
        html.Text(_worst_text(subgroups)),
        _odds_table(single, metrics),
        _gaps_table(subgroups, f"Differences of groups{of}"),
        subgroup_table(single, f"Metrics of groups{of}"),
        *([subgroup_table(others, f"Metrics of intersections of groups{of}")] if others else []),
    ]


def _worst_text(subgroups: Sequence[Subgroup]) -> str:
    """`subgroup_sentence`, and a paragraph on the group with the lowest accuracy."""
    worst, sentence = worst_group(subgroups), subgroup_sentence(subgroups)
    if worst is None:
        return sentence
    accuracy = worst.metrics["accuracy"]
    lowest = (
        f"Lowest accuracy: {worst.name}, {html.format_estimate(accuracy)} on "
        f"{html.format_sample_size(accuracy)}. The lowest of several groups is partly so by chance."
    )
    return f"{sentence}\n\n{lowest}"


def _odds_table(subgroups: Sequence[Subgroup], metrics: Estimates) -> html.Table:
    attributes = dict.fromkeys(s.attribute for s in subgroups if s.attribute)
    rows = [(a, *(metrics.get(f"{name}/{a}") for name in ODDS)) for a in attributes]
    note = f"Largest difference between two groups; 0 is ideal. {html.SMALL_PRINT}"
    columns = ("", *(METRICS[name].label for name in ODDS))
    return html.Table(columns, rows, "Equalized odds", note)


def _gaps_table(subgroups: Sequence[Subgroup], heading: str) -> html.Table:
    gaps = [(s, metric, gap) for s in subgroups for metric, gap in s.gaps.items()]
    gaps.sort(key=lambda row: row[2].p_value)
    rows = [
        (s.attribute, s.group, metric_label(metric), s.metrics[metric],
         html.SignedEstimate(gap.estimate), f"{gap.p_value:.3g}")
        for s, metric, gap in gaps[:MAX_ROWS]
    ]  # fmt: skip
    count = f" The {len(rows)} smallest p of {len(gaps)}; results.json has all."
    columns = ("attribute", "group", "metric", "value", "difference", "p")
    return html.Table(columns, rows, heading, f"{GAPS_NOTE}{count}")


def subgroup_table(subgroups: Sequence[Subgroup], heading: str) -> html.Table:
    """One row per group with its size, prevalence and metrics."""
    names = list(subgroups[0].metrics)
    rows: list[tuple[html.Cell, ...]] = [
        (s.attribute, s.group, s.n, s.patients,
         *(f"{100 * p:.0f} %" for p in s.prevalence.values()), *s.metrics.values())
        for s in subgroups
    ]  # fmt: skip
    shares = [f"% {outcome}" for outcome in subgroups[0].prevalence]
    columns = ("attribute", "group", "images", "patients", *shares, *map(metric_label, names))
    return html.Table(columns, rows, heading, html.SMALL_PRINT)
