"""The report of members side by side: metrics, recall per class, diversity and paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations

import numpy as np
import pandas as pd

from evaluation.diversity import PairDiversity, member_diversity
from evaluation.metrics.clinical import outcome_table, shown_outcomes, use_of
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.operating_points import decision_metrics
from evaluation.metrics.registry import headline_metrics, metric_label
from evaluation.plots import curves, style
from evaluation.plots import ensemble as plots
from evaluation.predictions import PredictionTable, Tables, align_members, row_unit
from evaluation.reports import clinical, grades, html
from evaluation.reports.ensemble import diversity_table, paired_meta
from evaluation.reports.overview import ONE_DATASET, about_data
from evaluation.reports.subgroups import subgroup_sections, subgroup_sentences
from evaluation.results import Results, collect_notes
from evaluation.stats import paired_tests
from evaluation.stats.bootstrap import DRAWS
from evaluation.stats.estimate import Estimate, Estimates
from evaluation.stats.paired_tests import Differences
from evaluation.subgroups import Subgroup, compute_subgroups

OUTCOME_METRICS = ("auroc", "calibration_slope", "net_benefit", "recall", "specificity")
RAW_NOTE = (
    "Probabilities are those of the prediction tables: raw for a single model, calibrated for an "
    "ensemble with a fitted voter."
)


@dataclass(frozen=True)
class Comparison:
    """Metrics of several members on the same images; pairs are named `first & second`."""

    metrics: dict[str, Estimates]  # of each member
    decisions: dict[str, Estimates]  # about the first outcome at the stated threshold
    differences: dict[str, Differences]  # first minus second of each two members
    diversity: dict[str, PairDiversity]  # of each two members
    agreement: Estimate  # fraction of the rows on which all members predict the same class
    rows: str  # what the rows of the tables are: images, studies or patients
    subgroups: dict[str, list[Subgroup]]  # of each member


def compare_models(
    tables: Tables, draws: int = DRAWS, seed: int = 0, attribute: str = ""
) -> Comparison:
    """Compares members, pairs of them (p-values by Holm), and groups by all attributes or one."""
    aligned = align_members(tables)
    differences = {
        f"{a} & {b}": paired_tests.paired_differences(aligned[a], aligned[b], draws, seed)
        for a, b in combinations(aligned, 2)
    }
    groups = {name: compute_subgroups(table, attribute) for name, table in aligned.items()}
    metrics = {name: compute_metrics(table, draws, seed) for name, table in aligned.items()}
    pairs, agreement = member_diversity(aligned, draws, seed)
    corrected = paired_tests.holm_corrected(differences)
    first = next(iter(aligned.values()))
    outcome, threshold = shown_outcomes(first)[0], use_of(first).threshold
    decisions = {
        name: decision_metrics(outcome_table(table, outcome), outcome, threshold, draws, seed)
        for name, table in aligned.items()
    }
    return Comparison(metrics, decisions, corrected, pairs, agreement, row_unit(first), groups)


def summary_sentence(comparison: Comparison) -> str:
    """The member of highest accuracy, and whether the second is significantly worse."""
    accuracy = {name: metrics["accuracy"] for name, metrics in comparison.metrics.items()}
    first, *others = sorted(accuracy, key=lambda name: -(accuracy[name].value or 0.0))
    shown = html.format_estimate(accuracy[first])
    sample = html.format_sample_size(accuracy[first], comparison.rows)
    sentence = f"{first} reaches the highest accuracy, {shown}, on {sample}."
    if not others:
        return sentence
    pair = next(n for n in comparison.differences if set(n.split(" & ")) == {first, others[0]})
    difference = comparison.differences[pair]["accuracy"]
    result = paired_tests.better_or_worse("accuracy", difference)
    shown = html.format_estimate(difference.estimate, sign="+")
    return f"{sentence} {pair.replace(' & ', ' minus ')}: {shown}, {result}."


def comparison_sections(
    comparison: Comparison, tables: Tables, histories: Mapping[str, pd.DataFrame]
) -> list[html.Section]:
    """All sections of the report, from top to bottom."""
    first = next(iter(tables.values()))
    class_names, notes = first.class_names, collect_notes(tables.values())
    groups = subgroup_sentences(comparison.subgroups)
    bars = curves.reliability_caption(tables.values())
    with style.member_colors(tables):
        recalls = plots.recall_plot(comparison.metrics, class_names)
        return [
            html.Text(summary_sentence(comparison), lead=True),
            outcome_comparison(comparison, first),
            html.Overview(about_data(first, groups, [ONE_DATASET, *notes])),
            member_table(comparison),
            recall_table(comparison.metrics, class_names),
            html.Plot(recalls, "The best members of each class are circled.", "Recall"),
            *pair_sections(comparison, tables),
            html.Plot(curves.roc_comparison(tables), "Mean over classes.", "ROC"),
            html.Plot(curves.precision_recall_plot(tables), "", "Precision and recall"),
            *clinical.decision_curves(tables),
            html.Plot(curves.reliability_plot(tables), bars, "Reliability"),
            html.Plot(plots.risk_coverage_plot(tables), "", "Risk and coverage"),
            *[
                section
                for name, groups in comparison.subgroups.items()
                for section in subgroup_sections(
                    groups, comparison.metrics[name], tables[name], name
                )
            ],
            *[
                section
                for name, table in tables.items()
                for section in (
                    html.Plot(curves.confusion_plot(table), "", f"Confusion matrix: {name}"),
                    *grades.misgrading_tables(table, f"Misgradings by distance: {name}"),
                )
            ],
            *[
                html.Plot(curves.learning_curves(history, name), "", f"Learning curves: {name}")
                for name, history in histories.items()
            ],
        ]


def outcome_comparison(comparison: Comparison, table: PredictionTable) -> html.Table:
    """`OUTCOME_METRICS` of the first outcome, one row per member, for the first screen."""
    names = [f"{name}/{shown_outcomes(table)[0]}" for name in OUTCOME_METRICS]
    members = {n: m | comparison.decisions[n] for n, m in comparison.metrics.items()}
    note = f"Net benefit and decisions at the threshold {use_of(table).threshold:g}."
    return html.models_table(members, "", f"{note} {html.SMALL_PRINT}", names=names)


def member_table(comparison: Comparison) -> html.Table:
    """One row per member with its summary metrics."""
    return html.models_table(comparison.metrics, "Members", f"{html.SMALL_PRINT} {RAW_NOTE}")


def pair_sections(comparison: Comparison, tables: Tables) -> list[html.Section]:
    """Differences, agreement and diversity of each two members; nothing for a single member."""
    if len(tables) < 2:
        return []
    return [
        difference_table(comparison),
        *clinical.difference_sections(tables, comparison.differences),
        html.Plot(plots.agreement_plot(tables), f"% of the {comparison.rows}.", "Agreement"),
        diversity_table(comparison.diversity, comparison.agreement, comparison.rows),
    ]


def recall_table(members: Mapping[str, Estimates], class_names: Sequence[str]) -> html.Table:
    """Recall of each member on each class, and the best member of each class."""
    rows: list[tuple[html.Cell, ...]] = []
    for name in class_names:
        recalls = [metrics[f"recall/{name}"] for metrics in members.values()]
        values = [-1.0 if recall.value is None else recall.value for recall in recalls]
        best = list(members)[int(np.argmax(values))] if max(values) >= 0 else "none"
        rows.append((name, *recalls, best))
    note = f"{html.SMALL_PRINT} Members whose intervals overlap may not differ."
    return html.Table(("class", *members, "best"), rows, "Recall by class", note)


def difference_table(comparison: Comparison) -> html.Table:
    """One row per two members: headline metrics of the first minus the second, and p-values."""
    names, rows = headline_metrics(), list[tuple[html.Cell, ...]]()
    for pair, differences in comparison.differences.items():
        cells: list[html.Cell] = [pair]
        for difference in (differences[name] for name in names):
            cells += [html.SignedEstimate(difference.estimate), f"{difference.p_value:.3g}"]
        rows.append(tuple(cells))
    columns = ["first & second", *chain.from_iterable((metric_label(n), "p") for n in names)]
    test = next(iter(comparison.differences.values()))["accuracy"].test
    note = f"First minus second. {html.SMALL_PRINT} p of {metric_label('accuracy')}: {test}."
    return html.Table(columns, rows, "Paired differences", note)


def comparison_results(name: str, comparison: Comparison, tables: Tables) -> Results:
    """Metrics of the members and paired differences for results.json."""
    # metrics of the first member: the best on test would be selected on test
    first_name, first = next(iter(tables.items()))
    others = {f"member/{member}": metrics for member, metrics in comparison.metrics.items()}
    for pair, differences in comparison.differences.items():
        others[f"difference/{pair}"] = {m: d.estimate for m, d in differences.items()}
    diversity, agreement = comparison.diversity, comparison.agreement
    meta = {
        "notes": collect_notes(tables.values()),
        **paired_meta(comparison.differences, diversity, agreement, comparison.rows),
        "first": first_name,
    }
    split, metrics = "+".join(first.splits), comparison.metrics[first_name]
    groups = comparison.subgroups[first_name]
    return Results(name, split, first.class_names, metrics, others, subgroups=groups, meta=meta)


def metrics_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per member and metric, for a CSV file."""
    return pd.DataFrame([
        {"member": member, "metric": name, **asdict(estimate)}
        for member, metrics in comparison.metrics.items()
        for name, estimate in metrics.items()
    ])  # fmt: skip
