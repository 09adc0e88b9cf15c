"""Files of an experiment's results: report.html, results.json, results/*.csv, and the summary."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from consilium.experiments.config import ENSEMBLE, MEMBERS, ExperimentConfig
from consilium.experiments.plan import run_names
from consilium.experiments.results import ExperimentResults, load_results
from consilium.experiments.sections import appendix, ensemble, seeds_folds, sparsity
from evaluation.files import write_text
from evaluation.metrics.registry import summary_metrics
from evaluation.plots import curves, style
from evaluation.reports import html
from evaluation.reports.ensemble import CALIBRATED_NOTE
from evaluation.reports.overview import ONE_DATASET, overview
from evaluation.reports.run import readable_details, what_it_is
from evaluation.reports.subgroups import subgroup_sections, subgroup_sentences
from evaluation.results import Results, write_results
from evaluation.stats.estimate import Estimate, Estimates
from evaluation.subgroups import subgroups_frame
from lightning_modules.checkpoints import environment

CLAIMS_NOTE = (
    "A value above the believable range is more likely to come from a data leak than from a "
    "better model: run consilium audit."
)


def write_experiment_report(config: ExperimentConfig, folder: Path) -> tuple[bool, list[str]]:
    """Writes report.html, results.json, results/*.csv; returns (gates passed, summary lines)."""
    results = load_results(config, folder)
    with style.member_colors(run_names(config, MEMBERS)):
        html.write_report(folder / "report.html", config.title, sections(results))
    for name, table in result_tables(results).items():
        file = folder / "results" / f"{name}.csv"
        file.unlink(missing_ok=True)
        if len(table):
            write_text(file, table.to_csv(index=False))
    write_results(folder / "results.json", experiment_summary(results))
    return all(gate.passed for gate in results.gates), summary_lines(results)


def experiment_summary(results: ExperimentResults) -> Results:
    """Results of the first run, with the metrics of every run as `others`, and the gates passed.

    Paths of members are relative to the experiment's folder, which may be moved.
    """
    first = next(iter(results.runs.values()))
    members = {
        name: {**member, "path": os.path.relpath(member["path"], results.folder)}
        for name, member in first.meta.get("members", {}).items()
    }
    return replace(
        first,
        name=results.config.name,
        others={name: run.metrics for name, run in results.runs.items()},
        gates={gate.name: gate.passed for gate in results.gates},
        meta=first.meta | ({"members": members} if members else {}),
    )


def summary_lines(results: ExperimentResults) -> list[str]:
    """The lines for the terminal: the lead, every gate, and the path of the report."""
    gates = [
        f"gate {g.name}: {'pass' if g.passed else 'FAIL'} ({g.required}, measured {g.measured})"
        for g in results.gates
    ]
    return [
        lead_text(results),
        *_subgroup_sentences(results),
        *gates,
        f"Report: {results.folder / 'report.html'}",
    ]


def _subgroup_sentences(results: ExperimentResults) -> list[str]:
    """One sentence per ensemble, or per member without one, on the groups that it is worse for."""
    names = ensemble.shown_tables(results.ensembles, results.members)
    return subgroup_sentences({name: results.runs[name].subgroups for name in names})


def _subgroup_sections(results: ExperimentResults) -> list[html.Section]:
    page = list[html.Section]()
    for name, table in ensemble.shown_tables(results.ensembles, results.members).items():
        run = results.runs[name]
        page += subgroup_sections(run.subgroups, run.metrics, table, name)
    return page


def lead_text(results: ExperimentResults) -> str:
    """Sentences: accuracy of each ensemble, and of the best member, calibrated if ensembles are."""
    accuracies = {f"{name}, calibrated": metrics["accuracy"]
                  for name, metrics in results.ensemble_metrics.items()}  # fmt: skip
    calibrated = _calibrated_members(results)
    members, kind = (calibrated, "calibrated") if calibrated else (results.member_metrics, "raw")
    if len(members) > 1 or (members and not accuracies):  # else the ensemble is this member
        best = max(members, key=lambda name: members[name]["accuracy"].value or 0.0)
        rank = f", the best of {len(members)} members on test" * (len(members) > 1)
        accuracies[f"{best}, {kind}{rank}"] = members[best]["accuracy"]
    return " ".join(
        f"{name}: accuracy {html.format_estimate(e)} on {html.format_sample_size(e)}."
        for name, e in accuracies.items()
    )


def sections(results: ExperimentResults) -> list[html.Section]:
    """All sections of the report, from top to bottom."""
    first = next(iter(results.runs.values()))
    return [
        html.Text(lead_text(results), lead=True),
        *_first_screen(results),
        *([html.Gates(results.gates)] if results.gates else []),
        *_claims_section(results),
        _summary_table(results),
        *seeds_folds.folds_sections(results.config, results.pooled),
        *seeds_folds.seeds_sections(results.seeds),
        *_level_table(results),
        *sparsity.sections(results.sparsity),
        *ensemble.ensemble_sections(results.config, results.ensembles),
        *(ensemble.member_sections(results.members) if results.members else []),
        *ensemble.referral_sections(results.val_and_test),
        *_subgroup_sections(results),
        *appendix.saliency_sections(results.saliency),
        *(
            html.Plot(curves.learning_curves(history, name), "", f"Learning: {name}")
            for name, history in results.histories.items()
        ),
        *appendix.cost_sections(results.costs),
        *appendix.audit_sections(results.audits),
        html.Details({**readable_details(first), **environment()}),
    ]


def _first_screen(results: ExperimentResults) -> list[html.Section]:
    """The first screen, about the first ensemble, or the first member without one."""
    groups, notes = _subgroup_sentences(results), _notes(results)
    for name, table in ensemble.shown_tables(results.ensembles, results.members).items():
        run = results.runs[name]
        points = {e.run: e.operating_points for e in results.ensembles}.get(name, {})
        return [overview(what_it_is(run), run.metrics, table, points, groups, notes)]
    return [html.Text(note) for note in notes]


def _notes(results: ExperimentResults) -> list[str]:
    """Sentences, each once: gates not passed, warnings about data, runs that are left out."""
    notes = [f"Gate not passed: {g.name}, {g.required}, measured {g.measured}."
             for g in results.gates if not g.passed]  # fmt: skip
    notes.append(ONE_DATASET)
    notes += [str(note) for run in results.runs.values() for note in run.meta.get("notes", [])]
    groups = {"Not done yet": results.unfinished, "Made with other settings": results.changed}
    for reason, names in groups.items():
        notes += [f"{reason}, and not in this report: {', '.join(names)}."] if names else []
    return list(dict.fromkeys(notes))


def _claims_section(results: ExperimentResults) -> list[html.Section]:
    """A table of claimed, believable and measured values."""
    rows: list[tuple[html.Cell, ...]] = []
    for c in results.claims:
        claimed, believable = c.claim.claimed_text, "{:g} to {:g}".format(*c.claim.believable)
        rows.append((c.metric, claimed, believable, c.estimate, c.position, c.claim.why))
    columns = ("metric", "claimed", "believable", "measured", "", "why")
    return [html.Table(columns, rows, "Claims", CLAIMS_NOTE)] if rows else []


def _summary_table(results: ExperimentResults) -> html.Table:
    """Summary metrics of all ensembles and members."""
    metrics = summary_metrics_by_row(results)
    strong = [row for row, name in enumerate(metrics) if name.startswith(ENSEMBLE)]
    heading = "Ensembles and members" if strong else "Members"
    return html.models_table(metrics, heading, CALIBRATED_NOTE, strong=strong, count="n")


def _calibrated_members(results: ExperimentResults) -> dict[str, Estimates]:
    """Metrics of the members of all ensembles, each calibrated like a voter."""
    parts = [e.evaluated.calibrated_metrics for e in results.ensembles]
    return {name: metrics for part in parts for name, metrics in part.items()}


def summary_metrics_by_row(results: ExperimentResults) -> dict[str, Estimates]:
    """Metrics by name: `<name>, calibrated` of ensembles and members, `<name>, raw` of members."""
    calibrated = results.ensemble_metrics | _calibrated_members(results)
    rows = {f"{name}, calibrated": metrics for name, metrics in calibrated.items()}
    return rows | {f"{name}, raw": metrics for name, metrics in results.member_metrics.items()}


def _level_table(results: ExperimentResults) -> list[html.Section]:
    """Summary metrics by study or patient, and those that gates or claims name."""
    level = results.config.level
    if level == "image":
        return []
    named = [name.partition(".")[2] for name in (*results.config.gates, *results.config.claims)]
    named = [name for name in named if name.startswith(f"{level}/") and "*" not in name]
    names = list(dict.fromkeys([f"{level}/{name}" for name in summary_metrics()] + named))
    metrics = {name: run.metrics for name, run in results.runs.items()}
    note = f"The probabilities of the images of a {level} are averaged. {html.SMALL_PRINT}"
    return [html.models_table(metrics, f"By {level}", note, names=names, count="n")]


def result_tables(results: ExperimentResults) -> dict[str, pd.DataFrame]:
    """Content of each results/<name>.csv, by name."""
    pooled = results.pooled if results.config.folds else {}
    folds = {f"{n} {seed}" if seed is not None else n: m for (n, seed), m in pooled.items()}
    return {
        "members": _estimates_frame(results.member_metrics),
        "ensembles": _estimates_frame(results.ensemble_metrics),
        "operating_points": _operating_points_frame(results),
        "subgroups": subgroups_frame({n: run.subgroups for n, run in results.runs.items()}, "run"),
        "voters": _voters_frame(results),
        "gates": pd.DataFrame([asdict(gate) for gate in results.gates]),
        "claims": _claims_frame(results),
        "folds": _estimates_frame(folds),
        "seeds": results.seeds,
        "sparse": _split_estimates(results.sparsity.pairs),
        "sparse_seeds": _split_estimates(results.sparsity.means),
        "changed": results.sparsity.changed,
        "saliency": appendix.saliency_table(results.saliency),
        "cost": results.costs,
    }


def _estimates_frame(groups: Mapping[str, Estimates], first: str = "run") -> pd.DataFrame:
    """One row per group and metric."""
    rows = [
        {first: group, "metric": name, **asdict(estimate)}
        for group, estimates in groups.items()
        for name, estimate in estimates.items()
    ]
    return pd.DataFrame(rows)


def _operating_points_frame(results: ExperimentResults) -> pd.DataFrame:
    """Metrics at every threshold of every run and ensemble."""
    points = {name: run.operating_points for name, run in results.runs.items()}
    points |= {e.run: e.operating_points for e in results.ensembles}
    parts = [
        _estimates_frame(rules, "threshold").assign(run=run, outcome=outcome)
        for run, outcomes in points.items()
        for outcome, rules in outcomes.items()
    ]
    return pd.concat([pd.DataFrame(), *parts], ignore_index=True)


def _voters_frame(results: ExperimentResults) -> pd.DataFrame:
    """Metrics of every voter, and its gain over the best single member."""
    parts = [pd.DataFrame()]
    for e in results.ensembles:
        groups = {f"voter/{name}": metrics for name, metrics in e.evaluated.voter_metrics.items()}
        for name, gains in e.evaluated.gains.items():
            groups[f"gain/{name}"] = {metric: gain.estimate for metric, gain in gains.items()}
        parts.append(_estimates_frame(groups, "voter").assign(ensemble=e.run))
    return pd.concat(parts, ignore_index=True)


def _claims_frame(results: ExperimentResults) -> pd.DataFrame:
    columns = ["claim", "metric", "claimed", "low", "high", "measured", "position"]
    rows = [
        (c.name, c.metric, c.claim.claimed_text, *c.claim.believable, c.value, c.position)
        for c in results.claims
    ]
    return pd.DataFrame(rows, columns=columns)


def _split_estimates(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows with columns `accuracy_value`, `accuracy_low`, `accuracy_high` for estimates."""

    def split_estimate(cell: object) -> object:
        if isinstance(cell, Estimate):
            return {"value": cell.value, "low": cell.low, "high": cell.high}
        return cell

    nested = [{name: split_estimate(cell) for name, cell in row.items()} for row in rows]
    return pd.json_normalize(nested, sep="_")
