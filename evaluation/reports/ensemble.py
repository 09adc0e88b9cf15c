"""The report of an ensemble: every voter next to the best single member."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluation import ensemble as voting
from evaluation.diversity import NllDecomposition, PairDiversity
from evaluation.ensemble import EnsemblePredictions, EvaluatedVoters, FittedVoters
from evaluation.metrics.operating_points import OperatingPoints
from evaluation.metrics.registry import headline_metrics, metric_label, summary_metrics
from evaluation.plots import curves, style
from evaluation.plots import ensemble as plots
from evaluation.predictions import PredictionTable, Tables
from evaluation.reports import clinical, grades, html
from evaluation.reports.conformal import conformal_tables
from evaluation.reports.overview import ONE_DATASET, overview
from evaluation.results import CALIBRATED_MEMBER, Results, collect_notes
from evaluation.stats.estimate import Estimate, Estimates, decimals_of
from evaluation.stats.paired_tests import Differences, better_or_worse
from evaluation.voters.registry import voter_spec

SAME = 1e-6  # difference of two metrics up to the rounding of a fitted calibration
CALIBRATED_NOTE = (
    f"{html.SMALL_PRINT} Calibrated: on validation, in the same way for voters and members. Raw: "
    "probabilities as the network gives them; a voter or an ensemble has no raw row: its "
    "calibration is a part of it."
)


def ensemble_sections(
    fitted: FittedVoters, evaluated: EvaluatedVoters, predictions: EnsemblePredictions,
    disputed: Sequence[html.Section] = (),
) -> list[html.Section]:  # fmt: skip
    """The report below the first screen; `predictions` are those of the ensemble's own voter."""
    voter, rows = predictions.voter, evaluated.rows
    not_fitted = [(voter_spec(name).label, reason) for name, reason in fitted.not_fitted.items()]
    columns = ("voter", "reason")
    heading = f"All metrics of the ensemble ({voter_spec(voter).label})"
    pairs, agreement = evaluated.diversity, evaluated.agreement
    with style.member_colors(predictions.members):
        plot_sections = _plot_sections(fitted, evaluated, predictions)
    return [
        voter_table(fitted, evaluated, voter),
        gain_table(fitted, evaluated),
        *([html.Table(columns, not_fitted, "Voters that were not fitted")] if not_fitted else []),
        *plot_sections,
        html.metrics_table(evaluated.voter_metrics[voter], heading, rows),
        diversity_table(pairs, agreement, rows, evaluated.nll_decomposition),
        *disputed,
    ]


def first_screen(
    fitted: FittedVoters, evaluated: EvaluatedVoters, predictions: EnsemblePredictions,
    points: OperatingPoints, groups: Sequence[str],
) -> list[html.Section]:  # fmt: skip
    """The summary sentence, and an overview of the ensemble's own voter."""
    voter, tables = predictions.voter, predictions.members
    what = f"An ensemble of {html.format_count(len(tables), 'networks')}"
    notes = [ONE_DATASET, *fitted.warnings, *collect_notes(tables.values())]
    metrics, table = evaluated.voter_metrics[voter], predictions.calibrated
    return [
        html.Text(summary_sentence(fitted, evaluated, voter), lead=True),
        overview(what, metrics, table, points, groups, notes),
    ]


def summary_sentence(fitted: FittedVoters, evaluated: EvaluatedVoters, voter: str) -> str:
    """Accuracy of the ensemble, its difference to the best member, and whether it is better."""
    accuracy, gain = evaluated.voter_metrics[voter]["accuracy"], evaluated.gains[voter]["accuracy"]
    outcome = better_or_worse("accuracy", gain)
    sample = html.format_sample_size(accuracy, evaluated.rows)
    return (
        f"The ensemble ({voter_spec(voter).label}) reaches accuracy "
        f"{html.format_estimate(accuracy)} on {sample}. Difference to {fitted.best_member}, the "
        "best single member on validation: "
        f"{html.format_estimate(gain.estimate, sign='+')}, {outcome}."
    )


def voter_table(fitted: FittedVoters, evaluated: EvaluatedVoters, voter: str) -> html.Table:
    """Summary metrics of every voter and member, calibrated and raw, and of the mean member."""
    models: dict[str, Mapping[str, Estimate | None]] = {
        f"voter: {voter_spec(v).label}, calibrated": m for v, m in evaluated.voter_metrics.items()
    }
    best = {fitted.best_member: " (best on val)"}
    calibrated, raw = evaluated.calibrated_metrics, evaluated.member_metrics
    for kind, members in (("calibrated", calibrated), ("raw", raw)):
        models |= {f"member: {n}{best.get(n, '')}, {kind}": m for n, m in members.items()}
        means = {metric: mean_of_members(members, metric) for metric in summary_metrics()}
        models[f"mean member, {kind}"] = means
    strong = [list(evaluated.voter_metrics).index(voter)]
    return html.models_table(models, "Voters and members", CALIBRATED_NOTE, strong=strong)


def mean_of_members(members: Mapping[str, Estimates], metric: str) -> Estimate | None:
    """Mean of a metric over the members, without an interval; None if a member lacks it."""
    estimates = [metrics.get(metric) for metrics in members.values()]
    values = [e.value for e in estimates if e is not None and e.value is not None]
    if len(values) < len(estimates) or not estimates[0]:
        return None
    mean, first = float(np.mean(values)), estimates[0]
    return Estimate(mean, None, None, "mean of members", first.n, first.patients)


def gain_table(fitted: FittedVoters, evaluated: EvaluatedVoters) -> html.Table:
    """Each voter minus the best single member, and whether it is better or worse."""
    names, rows = headline_metrics(), list[tuple[html.Cell, ...]]()
    for voter, gains in evaluated.gains.items():
        cells = [html.SignedEstimate(gains[name].estimate) for name in names]
        compared = ("accuracy", "nll")
        outcomes = [f"{metric_label(n)}: {better_or_worse(n, gains[n])}" for n in compared]
        values = [gains[name].estimate.value for name in compared]
        if all(value is not None and abs(value) < SAME for value in values):
            outcomes = [f"the same predictions as {fitted.best_member}"]
        p_value = f"{gains['accuracy'].p_value:.3g}"
        rows.append((voter_spec(voter).label, *cells, p_value, "; ".join(outcomes)))
    test = next(iter(evaluated.gains.values()))["accuracy"].test
    note = (
        f"Each voter minus {fitted.best_member}, also calibrated, on the same "
        f"{evaluated.rows}. {html.SMALL_PRINT} p: {test}. A gain is claimed only if the interval "
        "excludes 0 and the corrected p-value is below 0.05."
    )
    columns = (*html.metric_columns(names), f"p ({metric_label('accuracy')})", "result")
    heading = f"Difference to the best single member: {fitted.best_member}"
    return html.Table(columns, rows, heading, note)


def _plot_sections(
    fitted: FittedVoters, evaluated: EvaluatedVoters, predictions: EnsemblePredictions
) -> list[html.Section]:
    ensemble, members = predictions.calibrated, predictions.members
    tables = {f"ensemble ({voter_spec(predictions.voter).label})": ensemble, **members}
    reliability = {"uncalibrated": predictions.uncalibrated, "calibrated": ensemble}
    bars = curves.reliability_caption(reliability.values())
    bars = f"{fitted.ensembles[predictions.voter].calibration.describe()}. {bars}"
    calibration = curves.reliability_plot(reliability)
    circled = "The best members of each class are circled; results.json has the intervals."
    recalls = plots.recall_plot(evaluated.member_metrics, ensemble.class_names)
    confusion = curves.confusion_plot(ensemble)
    unit = f"% of the {evaluated.rows}."
    sections: list[html.Section] = [
        html.Plot(plots.gain_plot(evaluated.gains), "Right of the line is better.", "Gains"),
        html.Plot(confusion, "Rows are the true classes.", "Confusion matrix"),
        *grades.misgrading_tables(ensemble),
        html.Plot(curves.roc_comparison(tables), "Mean over classes.", "ROC"),
        html.Plot(curves.precision_recall_plot(tables), "", "Precision and recall"),
        html.Plot(calibration, bars, "Reliability before and after calibration"),
        clinical.outcome_table(evaluated.voter_metrics[predictions.voter], ensemble),
        *clinical.decision_curves(tables),
        *clinical.calibration_curves(ensemble),
        html.Plot(plots.risk_coverage_plot(tables), "", "Risk and coverage"),
        html.Plot(plots.agreement_plot(members), unit, "Agreement of members"),
        html.Plot(recalls, circled, "Recall of members by class"),
        *member_weight_sections(fitted, list(members), ensemble.class_names),
    ]
    if evaluated.diversity:
        plot = plots.diversity_plot(evaluated)
        sections.append(html.Plot(plot, "", "Diversity and accuracy"))
    return sections


def member_weight_sections(
    fitted: FittedVoters, members: Sequence[str], class_names: Sequence[str]
) -> list[html.Section]:
    """Weights of the members in each voter, class or group; nothing if no voter has weights."""
    weights = plots.member_weight_rows(fitted.ensembles, class_names)
    if not weights:
        return []
    plot = plots.member_weights_plot(weights, members)
    return [html.Plot(plot, "In percent.", "Member weights")]


def diversity_table(
    pairs: Mapping[str, PairDiversity], agreement: Estimate, rows: str,
    nll: NllDecomposition | None = None,
) -> html.Table:  # fmt: skip
    """One row per two members with their diversity; the note has the NLL decomposition."""
    cells: list[tuple[html.Cell, ...]] = [
        (names, p.disagreement, p.double_fault, p.q, p.kappa, p.error_correlation)
        for names, p in pairs.items()
    ]
    columns = ("pair", "disagreement", "double fault", "Q", "kappa", "error correlation")
    note = (
        f"All members agree on a fraction {html.format_estimate(agreement)} of the "
        f"{html.format_sample_size(agreement, rows)}. {html.SMALL_PRINT}"
    )
    if nll is not None:
        note += (
            f" Raw NLL of the geometric mean {nll.pool:.3f} = mean member {nll.mean_member:.3f} - "
            f"diversity {nll.diversity:.3f}."
        )
    return html.Table(columns, cells, "Diversity", note)


def disputed_section(
    tables: Tables, thumbnails: Sequence[tuple[bytes, str]] = ()
) -> list[html.Section]:
    """The images that members disagree on most: thumbnails if given, else a table."""
    heading = "Images with the largest disagreement of members"
    if thumbnails:
        images, captions = zip(*thumbnails, strict=True)
        return [html.Thumbnails(images, captions, heading)]
    rows = [(name, caption.replace("\n", "; ")) for name, caption in voting.most_disputed(tables)]
    return [html.Table(("image", "label and predictions"), rows, heading)]


def referral_sections(val: PredictionTable, test: PredictionTable) -> list[html.Table]:
    """Referral and prediction sets of one model, fitted on val and evaluated on test."""
    referral = referral_table(*voting.evaluate_referral(val, test), test)
    return [referral, *conformal_tables(val, test)]


def referral_table(
    rules: Sequence[voting.ReferralMetrics], aurc: float, test: PredictionTable
) -> html.Table:
    """Referral thresholds on test, see `evaluate_referral`."""
    rows = [(f"refer above risk {r.risk:g}", r.coverage, r.error_rate) for r in rules]
    images, patients = len(test.labeled), len(set(test.labeled.patients))
    note = (
        f"On {html.format_count(images, 'images')} of {html.format_count(patients, 'patients')}. "
        f"{html.SMALL_PRINT} Area under the risk-coverage curve on test: "
        f"{html.format_number(aurc, decimals_of(images))}. Thresholds were fitted on validation."
    )
    return html.Table(("", "images answered", "error rate"), rows, "Referral", note)


def ensemble_results(
    name: str, fitted: FittedVoters, evaluated: EvaluatedVoters, tables: Tables, voter: str
) -> Results:
    """Metrics of `voter`; as `others`, those of each member and voter, and each voter's gain.

    A gain is the paired difference to the best member on validation, which is calibrated as well.
    """
    first = next(iter(tables.values()))
    others: dict[str, Estimates] = {f"member/{n}": m for n, m in evaluated.member_metrics.items()}
    calibrated = evaluated.calibrated_metrics
    others |= {f"{CALIBRATED_MEMBER}{name}": metrics for name, metrics in calibrated.items()}
    others |= {f"voter/{v}": metrics for v, metrics in evaluated.voter_metrics.items()}
    for v, gains in evaluated.gains.items():
        others[f"gain/{v}"] = {metric: gain.estimate for metric, gain in gains.items()}
    meta = {
        "voter": voter,
        "best_member_on_val": fitted.best_member,
        "calibrations": {v: asdict(e.calibration) for v, e in fitted.ensembles.items()},
        "not_fitted": fitted.not_fitted,
        "notes": [*fitted.warnings, *collect_notes(tables.values())],
        **paired_meta(evaluated.gains, evaluated.diversity, evaluated.agreement, evaluated.rows),
        "better_or_worse": better_or_worse("accuracy", evaluated.gains[voter]["accuracy"]),
        "manifest_digest": first.meta.get("manifest_digest"),
        "precision": first.meta.get("precision"),
    }
    split, metrics = "+".join(first.splits), evaluated.voter_metrics[voter]
    return Results(name, split, first.class_names, metrics, others, meta=meta)


def paired_meta(
    differences: Mapping[str, Differences], diversity: Mapping[str, PairDiversity],
    agreement: Estimate, rows: str,
) -> dict[str, Any]:  # fmt: skip
    """P-values and diversity of members for the `meta` of results.json."""
    return {
        "p_values": {p: {m: d.p_value for m, d in of.items()} for p, of in differences.items()},
        "diversity": {names: asdict(pair) for names, pair in diversity.items()},
        "agreement": asdict(agreement),
        "rows": rows,
    }
