"""consilium compare: members side by side, from their run folders or prediction tables."""

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from consilium.cli import words
from consilium.cli.ensemble import LEVEL, level
from evaluation.files import write_text
from evaluation.grouping import by_level
from evaluation.predictions import PredictionTable
from evaluation.reports import comparison, html
from evaluation.reports.comparison import MAIN, Compared
from evaluation.results import write_results


def run(args: list[str]) -> int:
    """Carries out `compare RUN...`."""
    asked = parser().parse_args(args)
    files = {name_of(path): path for path in asked.runs}
    if len(files) < len(asked.runs):
        raise ValueError(f"RUN: two of {[str(p) for p in asked.runs]} have one name")
    tables = {name: PredictionTable.read(table_of(p, asked.split)) for name, p in files.items()}
    tables = {name: by_level(table, *asked.level) for name, table in tables.items()}
    found = comparison.compare(tables, asked.draws, asked.seed, asked.by)
    write(asked, found, tables, histories(files))
    console = Console(soft_wrap=True, width=max(110, Console().width))
    console.print(summary(found))
    console.print(comparison.sentence(found))
    console.print(f"Report: {asked.output / 'report.html'}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("compare", __doc__)
    add = main.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folder or prediction table")
    add("--split", default="test", help="split whose tables are read from run folders (test)")
    add("--level", type=level, default=("image", "mean"), metavar="LEVEL[:RULE]", help=LEVEL)
    add("--by", default="", metavar="ATTRIBUTE", help="also measure each value of an attribute")
    add("-o", "--output", type=Path, default=Path("runs/compare"), help="folder (runs/compare)")
    add("--title", default="Members side by side", help="what stands above the report")
    add("--draws", type=int, default=2000, help="bootstrap draws (2000)")
    add("--seed", type=int, default=0, help="of the bootstrap (0)")
    return main


def name_of(path: Path) -> str:
    """The run folder's name, or the table's own or its run's."""
    if path.suffix != ".parquet":
        return path.name
    return path.parent.parent.name if path.parent.name == "predictions" else path.stem


def table_of(path: Path, split: str) -> Path:
    """The prediction table of a run folder, or the path itself."""
    table = path if path.suffix == ".parquet" else path / "predictions" / f"{split}.parquet"
    if not table.is_file():
        raise ValueError(f"RUN {path}: no prediction table {table}; run consilium test first")
    return table


def histories(files: dict[str, Path]) -> dict[str, pd.DataFrame]:
    """history.csv of the runs that have one."""
    found = {name: path / "history.csv" for name, path in files.items()}
    return {name: pd.read_csv(path) for name, path in found.items() if path.is_file()}


def write(
    asked: argparse.Namespace,
    found: Compared,
    tables: dict[str, PredictionTable],
    learned: dict[str, pd.DataFrame],
) -> None:
    """results.json, figures.csv and report.html."""
    write_results(asked.output / "results.json", comparison.results("compare", found, tables))
    write_text(asked.output / "figures.csv", comparison.frame(found).to_csv(index=False))
    page = comparison.sections(found, tables, learned)
    html.write_report(asked.output / "report.html", asked.title, page)


def summary(found: Compared) -> Table:
    """Members and their main figures, for the terminal."""
    table = Table(box=None, pad_edge=False)
    for column in ("", *MAIN):
        table.add_column(column, justify="right" if column else "left")
    for name, each in found.members.items():
        table.add_row(name, *(html.number(each[m]).split(" (")[0] for m in MAIN))
    return table
