"""Sections about clinical use: operating points, each class and group, decision curves."""

from collections.abc import Mapping, Sequence
from itertools import product

from evaluation.metrics.clinical import ClinicalUse, shown_outcomes, use_of, with_use_of
from evaluation.metrics.operating_points import OperatingPoints
from evaluation.metrics.registry import METRICS, outcome_metrics
from evaluation.plots import clinical as plots
from evaluation.predictions import PredictionTable, Tables, align_members
from evaluation.reports import html
from evaluation.stats.estimate import Estimate
from evaluation.stats.paired_tests import Differences

PANELS = 3  # outcomes in one plot
MAX_PAIRS = 3  # of models whose differences have a plot
RATES = {"recall/{}": "sensitivity", "specificity/{}": "specificity", "precision/{}": "PPV",
         "npv/{}": "NPV", "number_needed_to_refer/{}": "referred per case found",
         "accuracy": "accuracy"}  # fmt: skip


def operating_point_tables(points: OperatingPoints, table: PredictionTable) -> list[html.Table]:
    """Tables of operating points: the first outcome, the others, predictive values of all."""
    values = {f"{name}/{{}}/{p:g}": f"{METRICS[name].label} {100 * p:g}\u00a0%"
              for p in use_of(table).prevalences
              for name in ("ppv_at_prevalence", "npv_at_prevalence")}  # fmt: skip
    (first, rules), *others = points.items() or [("", {})]
    note = (
        "The class is decided above this probability; thresholds were fitted on val. Cost: "
        f"{_cost_text(use_of(table))}. {html.SMALL_PRINT}"
    )
    tables = [
        _rules_table({first: rules}, RATES, f"Decision thresholds for {first}", note, True),
        _rules_table(dict(others), RATES, "Decision thresholds for the other classes", note),
        _rules_table(points, values, "Predictive values at other prevalences", note),
    ]
    return [rules for rules in tables if rules.rows]


def _rules_table(
    points: OperatingPoints,
    columns: Mapping[str, str],
    heading: str,
    note: str,
    is_first: bool = False,
) -> html.Table:
    """One row per outcome and rule; `columns` are labels by name of a metric, {} the outcome."""
    rows = [
        (
            rule if is_first else f"{outcome}: {rule}",
            *(metrics.get(n.format(outcome)) for n in columns),
        )
        for outcome, rules in points.items()
        for rule, metrics in rules.items()
    ]
    names = ("threshold", *columns.values())
    return html.Table(names, rows, heading, note)


def outcome_table(metrics: Mapping[str, Estimate], table: PredictionTable) -> html.Table:
    """Metrics of each class and each named group of classes against all others."""
    names, use = outcome_metrics(), use_of(table)
    columns = ["", *map(_column_name, names)]
    rows = [(o, *(metrics.get(f"{name}/{o}") for name in names)) for o in shown_outcomes(table)]
    note = (
        f"{html.SMALL_PRINT} A calibration slope below 1: probabilities are too extreme. "
        "Calibration in the large below 0: they are too large on average. Net benefit is at the "
        f"threshold {use.threshold:g}: {_cost_text(use)}. Treating no one has the net benefit 0."
    )
    return html.Table(columns, rows, "Each class against the others", note)


def _cost_text(use: ClinicalUse) -> str:
    """`4 false alarms are as bad as one missed case`."""
    return f"{use.false_alarms_per_case:.3g} false alarms are as bad as one missed case"


def _column_name(name: str) -> str:
    spec = METRICS[name]
    return spec.label + (f" (ideal {spec.ideal:g})" if spec.ideal is not None else "")


def decision_curves(tables: Tables) -> list[html.Section]:
    """Decision curves of models on the same images, a few outcomes in each plot."""
    first = next(iter(tables.values()))
    tables = {name: with_use_of(first, table) for name, table in tables.items()}
    caption = (
        "Net benefit: cases found per image, minus false alarms times the odds of the threshold. "
        "A model helps where it is above treating all and above 0, treating none. Band: 95 % "
        "confidence interval" + (f" of {next(iter(tables))}." if len(tables) > 1 else ".")
    )
    return [
        html.Plot(plots.decision_curve_plot(tables, part), caption, heading)
        for part, heading in _parts(first, "Decision curves")
    ]


def calibration_curves(table: PredictionTable, name: str = "") -> list[html.Section]:
    """Smooth calibration curves and histograms of probabilities, a few outcomes in each plot."""
    caption = (
        "Kernel mean with its 95 % confidence interval; below the diagonal, probabilities are too "
        "large. Histograms: images with the outcome upwards, without it downwards, in percent."
    )
    return [
        html.Plot(plots.calibration_plot(table, part, name), caption, heading)
        for part, heading in _parts(table, "Calibration curves")
    ]


def _parts(table: PredictionTable, heading: str) -> list[tuple[Sequence[str], str]]:
    """(outcomes, heading) of each plot, which has up to `PANELS` outcomes."""
    outcomes = shown_outcomes(table)
    parts = [outcomes[at : at + PANELS] for at in range(0, len(outcomes), PANELS)]
    headings = [heading, *(f"{heading}: {', '.join(part)}" for part in parts[1:])]
    return list(zip(parts, headings, strict=True))


def difference_sections(
    tables: Tables, differences: Mapping[str, Differences]
) -> list[html.Section]:
    """Paired differences of each class and group, and those of the net benefit by threshold."""
    first, page = next(iter(tables.values())), list[html.Section]()
    specs = [METRICS[name] for name in outcome_metrics()]
    paired = [spec for spec in specs if spec.is_paired and spec.scope == "outcome"]
    rows: list[tuple[html.Cell, ...]] = []
    for outcome, (pair, of_pair) in product(shown_outcomes(first), differences.items()):
        cells: list[html.Cell] = [f"{outcome}: {pair}"]
        for difference in (of_pair[f"{spec.name}/{outcome}"] for spec in paired):
            cells += [html.SignedEstimate(difference.estimate), f"{difference.p_value:.3g}"]
        rows.append(tuple(cells))
    columns = ["first & second", *(label for spec in paired for label in (spec.label, "p"))]
    note = f"First minus second. {html.SMALL_PRINT} p is corrected by Holm over the pairs."
    heading = "Paired differences of each class"
    page.append(html.Table(columns, rows, heading, note))
    aligned = align_members(tables)
    if len(differences) <= MAX_PAIRS:
        caption = (
            "Above 0 the first is better. A line has the colors of both. Bands: 95 % confidence "
            "intervals."
        )
        for part, title in _parts(first, "Differences of net benefit"):
            plot = plots.net_benefit_difference_plot(aligned, part)
            page.append(html.Plot(plot, caption, title))
    return page
