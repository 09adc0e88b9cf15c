"""The report of an external validation: the internal test and another dataset side by side."""

from collections.abc import Iterable, Mapping

from evaluation.external import LOCAL_PATIENTS, MIN_REMAINING, largest_shifts
from evaluation.metrics.clinical import shown_outcomes, use_of
from evaluation.metrics.registry import metric_label, summary_metrics
from evaluation.plots import curves, style
from evaluation.predictions import PredictionTable
from evaluation.reports import clinical, html
from evaluation.reports.overview import overview
from evaluation.reports.run import readable_details, what_it_is
from evaluation.results import Results
from evaluation.stats.estimate import Estimate, Estimates

SMALL_SHIFT = 0.1  # of a standardized difference that the summary leaves out (Austin 2009)
DIFFERENCE = "Differences have intervals for independent samples."
RECALIBRATION = (
    "Slope and class biases are fitted to the images of k local patients, drawn 200 times, and "
    "evaluated on the other patients: median and 95 % range, in which the other patients are "
    "resampled as well. The stored model is not changed. A fit is pulled to no change, which "
    "limits what few or separated cases can do."
)


def external_sections(
    results: Results, tables: Mapping[str, PredictionTable], environment: Mapping[str, object] = {}
) -> list[html.Section]:
    """All sections of the report; `tables` has predictions on `internal` and `external` images."""
    external, internal = results.metrics, results.others["internal"]
    table, both = tables["external"], {site: tables[site] for site in ("internal", "external")}
    first, *others = shown_outcomes(table)
    page: list[html.Section] = [html.accuracy_sentence(results.name, external["accuracy"])]
    page.append(html.accuracy_sentence("The internal test", internal["accuracy"]))
    page.append(html.Text(shift_sentence(results)))
    notes = [str(note) for note in results.meta.get("notes", [])]
    points = results.operating_points
    page.append(overview(what_it_is(results), external, table, points, notes=notes))
    with style.member_colors(["external"]):
        bars = curves.reliability_caption(both.values())
        plots = [
            html.Plot(curves.roc_comparison(both), "Mean over classes.", "ROC"),
            html.Plot(curves.reliability_plot(both), bars, "Reliability"),
            *clinical.calibration_curves(table, "external"),
        ]
    page += [
        side_by_side(results, summary_metrics(), "Internal and external"),
        _three_columns(results, "prevalence", "external minus internal", "Prevalence", DIFFERENCE),
        _three_columns(
            results, "images", "standardized difference", "Images",
            "Means of the image files. The standardized difference is in standard deviations.",
        ),
        recalibration_table(results, first, "Recalibration with local patients"),
        *(recalibration_table(results, o, f"Recalibration: {o}") for o in others),
        net_benefit_table(results, table),
        *clinical.operating_point_tables(points, table),
        *plots,
        side_by_side(results, external, "All metrics"),
        html.Details({**readable_details(results), **environment}),
    ]  # fmt: skip
    return [section for section in page if not isinstance(section, html.Table) or section.rows]


def shift_sentence(results: Results) -> str:
    """What differs from the internal test, as far as intervals exclude 0."""
    prevalence = largest_shifts(results, "prevalence/external minus internal")
    images = largest_shifts(results, "images/standardized difference", SMALL_SHIFT)
    texts = []
    for title, shifts in (("Prevalence", prevalence), ("Images, in standard deviations", images)):
        shown = [f"{name} {html.format_estimate(e, sign='+')}" for name, e in shifts.items()]
        texts += [f"{title}: {', '.join(shown)}."] if shown else []
    return f"Shifts found. {' '.join(texts)}" if texts else "No shift was found."


def side_by_side(results: Results, names: Iterable[str], heading: str) -> html.Table:
    """Metrics of the internal test, of the external set and their differences."""
    internal, difference = (results.others[n] for n in ("internal", "external minus internal"))
    rows: list[tuple[html.Cell, ...]] = [
        (metric_label(n), internal[n], results.metrics[n], html.SignedEstimate(difference[n]))
        for n in names
        if n in difference
    ]
    columns = ("", "internal", results.name, "difference")
    return html.Table(columns, rows, heading, f"{html.SMALL_PRINT} {DIFFERENCE}")


def _three_columns(
    results: Results, group: str, difference: str, heading: str, note: str
) -> html.Table:
    """Values of both sets and their difference, one row per name in a group of `others`."""
    shift = results.others.get(f"{group}/{difference}", {})
    sites = [results.others.get(f"{group}/{site}", {}) for site in ("internal", "external")]
    rows: list[tuple[html.Cell, ...]] = [
        (name, *(of.get(name) for of in sites), html.SignedEstimate(e)) for name, e in shift.items()
    ]
    columns = ("", "internal", results.name, difference)
    return html.Table(columns, rows, heading, f"{html.SMALL_PRINT} {note}")


def recalibration_table(results: Results, outcome: str, heading: str) -> html.Table:
    """Metrics of an outcome after recalibration, one row per number of local patients."""
    recalibrated = {k: results.others[f"recalibrated/{k}"] for k in LOCAL_PATIENTS}
    names = [n for n in recalibrated[0] if "/" not in n or n.endswith(f"/{outcome}")]
    rows: list[tuple[html.Cell, ...]] = [
        (f"{k} patients" if k else "none", *(of[n] for n in names))
        for k, of in recalibrated.items()
    ]
    note = f"{RECALIBRATION} At least {MIN_REMAINING} patients have to remain."
    return html.Table(("local patients", *map(metric_label, names)), rows, heading, note)


def net_benefit_table(results: Results, table: PredictionTable) -> html.Table:
    """One row per outcome: its net benefit, the target, and the local patients to reach it."""
    rows = list[tuple[html.Cell, ...]]()
    for outcome, needed in results.meta["net_benefit"].items():
        internal, external = (
            of.get(f"net_benefit/{outcome}") for of in (results.others["internal"], results.metrics)
        )
        possible: Estimates = results.others["prevalence/external"]
        cells: list[html.Cell] = [outcome, internal, external, float(needed["target"])]
        cells += [possible.get(outcome)]
        cells += [_needed_text(needed[key], needed["tried"]) for key in ("reached", "exceeded")]
        rows.append(tuple(cells))
    use = use_of(table)
    columns = ("", "internal", results.name, "to reach", "greatest possible",
               "by the interval", "by the whole interval")  # fmt: skip
    note = (
        f"Net benefit at the threshold {use.threshold:g}. No model can have more than the "
        "prevalence. The last columns are the smallest numbers of local patients from which on the "
        f"interval of a recalibrated model contains the value, or is above it. {html.SMALL_PRINT}"
    )
    return html.Table(columns, rows, "Net benefit", note)


def _needed_text(patients: int | None, tried: int | None) -> str:
    """`reached with 50 patients`, or why there is no such number."""
    if patients is None:
        return f"not reached with {tried} patients" if tried is not None else "not measured"
    return f"reached with {patients} patients" if patients else "reached without recalibration"


def net_benefit_sentence(results: Results) -> str:
    """One line for the terminal: the first outcome's net benefit, and what reaches the target."""
    if not results.meta["net_benefit"]:
        return "Net benefit was not measured in the internal test"
    outcome, needed = next(iter(results.meta["net_benefit"].items()))
    measured: Estimate = results.metrics[f"net_benefit/{outcome}"]
    shown = f"Net benefit for {outcome}: {html.format_estimate(measured)}"
    return f"{shown}; {needed['target']:.3f}: {_needed_text(needed['reached'], needed['tried'])}"
