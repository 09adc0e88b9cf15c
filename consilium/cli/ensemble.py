"""Combine trained models by their predictions; images are not needed.

Fits every voter on predictions of the val split, evaluates all of them on the test split, and
compares them with the best single member. The output folder has the fitted voters, predictions,
results.json and report.html.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from consilium.cli.options import LEVEL_HELP, level
from evaluation import ensemble as voting
from evaluation.ensemble import EvaluatedVoters, FittedVoters
from evaluation.metrics.calibration import CalibrationMethod
from evaluation.metrics.operating_points import evaluate_thresholds
from evaluation.metrics.registry import metric_label, summary_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import ensemble as report
from evaluation.reports import html
from evaluation.reports.clinical import operating_point_tables
from evaluation.reports.subgroups import subgroup_sections, subgroup_sentence
from evaluation.results import read_tables, write_results
from evaluation.stats.paired_tests import better_or_worse
from evaluation.subgroups import Subgroup, compute_subgroups
from evaluation.voters import store
from evaluation.voters.registry import AUTO, VOTERS, VoterOptions

Tables = Mapping[str, PredictionTable]
EXAMPLES = """\
examples:
  consilium ensemble --val runs/resnet runs/swin --test runs/resnet runs/swin
  consilium ensemble --val val/*.parquet --test test/*.parquet --voter greedy -o runs/greedy
"""


def run(args: argparse.Namespace) -> int:
    """Fits and evaluates the voters, writes the output folder and prints a summary."""
    options = VoterOptions(args.attribute, args.attended_values, args.weights)
    missing = [] if args.voter == AUTO else VOTERS[args.voter].missing_options(options)
    if missing:
        raise ValueError(f"--voter {args.voter}: needs --{missing[0].replace('_', '-')}")
    val, test = read_tables(args.val, "--val", "val"), read_tables(args.test, "--test", "test")
    voting.check_test_tables(val, test)
    console = Console(soft_wrap=True, width=max(110, Console().width))
    console.print(f"fitting voters on {len(next(iter(val.values()))):,} validation images")
    fitted = voting.fit_voters(val, options, args.calibration)
    reason, args.voter = fitted.reason(args.voter), fitted.select(args.voter)
    if reason:
        console.print(f"{reason}: {VOTERS[args.voter].label}")
    if args.voter not in fitted.ensembles:
        raise ValueError(f"--voter {args.voter}: {fitted.not_fitted[args.voter]}")
    console.print(f"evaluating {len(fitted.ensembles)} voters and {len(test)} members on test")
    evaluated = voting.evaluate_voters(fitted, test, args.draws, args.seed, args.level)
    groups = write_files(args, fitted, evaluated, val, test)
    console.print(summary_table(fitted, evaluated))
    console.print(report.summary_sentence(fitted, evaluated, args.voter))
    if groups:
        console.print(subgroup_sentence(groups))
    console.print(f"Report: {args.output / 'report.html'}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    for split in ("val", "test"):
        help_ = f"run folders or {split} prediction tables, one per member"
        add(f"--{split}", nargs="+", required=True, metavar="RUN", type=Path, help=help_)
    folder = Path("runs/ensemble")
    add("-o", "--output", type=Path, default=folder, metavar="DIR", help=f"({folder})")
    add("--level", type=level, default=("image", "mean"), metavar="LEVEL[:RULE]", help=LEVEL_HELP)
    help_ = "voter of the ensemble; auto: learned weights if val favors them, else the mean (auto)"
    add("--voter", default=AUTO, choices=[AUTO, *VOTERS], help=help_)
    help_ = "auto: vector scaling if val favors it; it may change decisions (temperature)"
    add("--calibration", default="temperature", choices=get_args(CalibrationMethod), help=help_)
    add("--attribute", default="", help="attribute with weights per value, such as body_part")
    help_ = "values of the attribute with weights from attention"
    add("--attended-values", nargs="+", default=[], metavar="VALUE", help=help_)
    add("--weights", nargs="+", type=float, metavar="W", help="fixed weights, one per member")
    add("--images", type=Path, metavar="DIR", help="folder of the images, to show disputed ones")
    add("--title", default="Ensemble", help="title of the report")
    add("--draws", type=int, default=2000, help="bootstrap draws (2000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (0)")


def write_files(
    args: argparse.Namespace, fitted: FittedVoters, evaluated: EvaluatedVoters, val: Tables,
    test: Tables,
) -> list[Subgroup]:  # fmt: skip
    """Writes voters, predictions, results.json and report.html; returns the test's subgroups."""
    folder, ensemble = args.output, fitted.ensembles[args.voter]
    store.save(folder, ensemble)
    on_val, on_test = (voting.combine_members(ensemble, list(t.values())) for t in (val, test))
    on_val.write(folder / "predictions" / "val.parquet")
    on_test.write(folder / "predictions" / "test.parquet")
    groups = compute_subgroups(on_test)
    points = evaluate_thresholds(on_val, on_test, args.draws, args.seed)
    voting.save_voters(folder, fitted, evaluated, points)
    results = report.ensemble_results(folder.name, fitted, evaluated, test, args.voter)
    results = replace(results, operating_points=points, subgroups=groups)
    write_results(folder / "results.json", results)
    disputed = report.disputed_section(test, thumbnails(args.images, test))
    predictions = voting.ensemble_predictions(ensemble, test, args.level)
    sentences = [subgroup_sentence(groups)] if groups else []
    page = [
        *report.first_screen(fitted, evaluated, predictions, points, sentences),
        *operating_point_tables(points, on_test),
        *report.ensemble_sections(fitted, evaluated, predictions, disputed),
    ]
    page += report.referral_sections(on_val, on_test)
    page += subgroup_sections(groups, results.metrics, on_test)
    html.write_report(folder / "report.html", args.title, page)
    return groups


def thumbnails(images: Path | None, tables: Tables) -> list[tuple[bytes, str]]:
    """PNG and caption of the images on which members disagree most; [] without their folder."""
    if images is None:
        return []
    from datamodules.images import read_thumbnail

    disputed = voting.most_disputed(tables)
    return [(read_thumbnail(images / name), f"{name}\n{text}") for name, text in disputed]


def summary_table(fitted: FittedVoters, evaluated: EvaluatedVoters) -> Table:
    """The main metrics of voters and members, for the terminal."""
    caption = "Voters and members are calibrated on val; report.html has the raw members as well."
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    names = [name for name in summary_metrics() if name != "balanced_accuracy"]
    labels = [metric_label(name) for name in names]
    for column in ("", *labels, f"Accuracy - {fitted.best_member}", ""):
        table.add_column(column, justify="right" if column in labels else "left", no_wrap=True)
    for voter, metrics in evaluated.voter_metrics.items():
        gain = evaluated.gains[voter]["accuracy"]
        cells = [html.format_estimate(metrics[name]).split(" ")[0] for name in names]
        difference = html.format_estimate(gain.estimate, sign="+")
        table.add_row(voter, *cells, difference, better_or_worse("accuracy", gain))
    for member, metrics in evaluated.calibrated_metrics.items():
        cells = [html.format_estimate(metrics[name]).split(" ")[0] for name in names]
        table.add_row(member, *cells, "", "")
    means = [report.mean_of_members(evaluated.calibrated_metrics, name) for name in names]
    cells = ["-" if mean is None else html.format_estimate(mean) for mean in means]
    table.add_row("mean member", *cells, "", "")
    return table
