"""Compare trained models by their predictions on the same images.

Writes report.html (metrics with intervals, recall per class, diversity, paired tests, learning
curves), results.json, metrics.csv and subgroups.csv.
"""

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Column, Table

from consilium.cli.options import LEVEL_HELP, level
from evaluation.files import write_text
from evaluation.metrics.registry import metric_label, summary_metrics
from evaluation.predictions import aggregate
from evaluation.reports import comparison, html
from evaluation.reports.comparison import Comparison
from evaluation.reports.subgroups import subgroup_sentences
from evaluation.results import member_name, read_tables, write_results
from evaluation.subgroups import subgroups_frame

EXAMPLES = """\
examples:
  consilium compare runs/resnet runs/swin
  consilium compare runs/demo/members/* --level patient --by body_part -o runs/compare
"""


def run(args: argparse.Namespace) -> int:
    """Compares the runs, writes the files and prints a summary."""
    tables = read_tables(args.runs, "RUN", args.split)
    tables = {name: aggregate(table, *args.level) for name, table in tables.items()}
    compared = comparison.compare_models(tables, args.draws, args.seed, args.by)
    folder, results = args.output, comparison.comparison_results("compare", compared, tables)
    write_results(folder / "results.json", results)
    write_text(folder / "metrics.csv", comparison.metrics_frame(compared).to_csv(index=False))
    groups = subgroups_frame(compared.subgroups, "member")
    write_text(folder / "subgroups.csv", groups.to_csv(index=False))
    files = {member_name(run): run / "history.csv" for run in args.runs}
    histories = {name: pd.read_csv(file) for name, file in files.items() if file.is_file()}
    sections = comparison.comparison_sections(compared, tables, histories)
    html.write_report(folder / "report.html", args.title, sections)
    console = Console(soft_wrap=True, width=max(110, Console().width))
    console.print(summary_table(compared))
    console.print(comparison.summary_sentence(compared))
    for sentence in subgroup_sentences(compared.subgroups):
        console.print(sentence)
    console.print(f"Report: {folder / 'report.html'}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folder or prediction table")
    add("--split", default="test", help="split whose tables are read from run folders (test)")
    add("--level", type=level, default=("image", "mean"), metavar="LEVEL[:RULE]", help=LEVEL_HELP)
    add("--by", default="", metavar="ATTRIBUTE", help="the only attribute that groups images (all)")
    folder = Path("runs/compare")
    add("-o", "--output", type=Path, default=folder, metavar="DIR", help=f"({folder})")
    add("--title", default="Comparison of models", help="title of the report")
    add("--draws", type=int, default=2000, help="bootstrap draws (2000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (0)")


def summary_table(compared: Comparison) -> Table:
    """The main metrics of each member, for the terminal."""
    names = summary_metrics()
    columns = [Column(metric_label(name), justify="right") for name in names]
    table = Table("", *columns, box=None, pad_edge=False)
    for member, metrics in compared.metrics.items():
        cells = [html.format_estimate(metrics[name]).split(" (")[0] for name in names]
        table.add_row(member, *cells)
    return table
