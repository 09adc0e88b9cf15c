"""consilium ensemble: fits every voter on val tables, judges it on test tables, and reports."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from consilium.cli import words
from consilium.inference.thumbnails import thumbnail
from evaluation.ensemble import (
    EvaluatedVoters,
    FittedVoters,
    combine_members,
    disputed,
    evaluate_voters,
    fit_voters,
    member_hash,
)
from evaluation.grouping import LEVELS, RULES, Level, Rule, by_level
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.reports.ensemble import (
    MAIN,
    by_part,
    mean_member,
    results,
    sections,
    selective,
    sentence,
    signed,
)
from evaluation.results import write_results
from evaluation.stats.paired_tests import verdict
from evaluation.voters import store

Tables = Mapping[str, PredictionTable]
LEVEL = "judge by image, study or patient, its films pooled by mean, max or noisy_or (image:mean)"


def run(args: list[str]) -> int:
    """Carries out `ensemble --val TABLE... --test TABLE...`."""
    asked = parser().parse_args(args)
    refuse_voter(asked)
    val, test = read_tables(asked.val, "--val"), read_tables(asked.test, "--test")
    refuse_strangers(val, test)
    console = Console(soft_wrap=True, width=max(110, Console().width))
    console.print(f"fitting voters on {len(next(iter(val.values()))):,} validation images")
    fitted = fit_voters(val, asked.attribute, asked.attend, asked.weights)
    if asked.voter not in fitted.ensembles:
        raise ValueError(f"--voter {asked.voter}: {fitted.left_out[asked.voter]}")
    console.print(f"judging {len(fitted.ensembles)} voters and {len(test)} members on test")
    judged = evaluate_voters(
        fitted, test, asked.draws, asked.seed, lambda t: by_level(t, *asked.level)
    )
    write(asked, fitted, judged, val, test)
    console.print(summary(fitted, judged))
    console.print(sentence(fitted, judged, asked.voter))
    console.print(f"Report: {asked.output / 'report.html'}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("ensemble", __doc__)
    add = main.add_argument
    for split, what in (("--val", "val tables, one a member"), ("--test", "their test tables")):
        add(split, nargs="+", required=True, metavar="TABLE", type=Path, help=what)
    add("-o", "--output", type=Path, default=Path("runs/ensemble"), help="folder (runs/ensemble)")
    add("--level", type=level, default=("image", "mean"), metavar="LEVEL[:RULE]", help=LEVEL)
    add("--voter", default="soft", choices=list(store.VOTERS), help="what it goes by (soft)")
    add("--attribute", default="", help="attribute with weights of its own, such as body_part")
    add("--attend", nargs="+", default=[], metavar="VALUE", help="its values for attention")
    add("--weights", nargs="+", type=float, metavar="W", help="fixed weights, one a member")
    add("--images", type=Path, metavar="DIR", help="folder that the ids lead from, to show images")
    add(
        "--title", default="An ensemble from prediction tables", help="what stands above the report"
    )
    add("--draws", type=int, default=2000, help="bootstrap draws (2000)")
    add("--seed", type=int, default=0, help="of the bootstrap (0)")
    return main


NEEDS = {"per_part": "attribute", "part_attention": "attend", "weighted": "weights"}


def refuse_voter(asked: argparse.Namespace) -> None:
    """A voter that cannot be without an option asks for it before anything is fitted."""
    option = NEEDS.get(asked.voter)
    if option and not getattr(asked, option):
        raise ValueError(f"--voter {asked.voter}: it needs --{option}")
    if asked.attend and not asked.attribute:
        raise ValueError("--attend names values of an attribute: it needs --attribute")


def read_tables(paths: list[Path], option: str) -> dict[str, PredictionTable]:
    """Tables by member: the run folder's name where there is one, else the file's."""
    names = [member_name(path) for path in paths]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{option}: two tables are of member {doubled[0]!r}")
    return {n: PredictionTable.read(path) for n, path in zip(names, paths, strict=True)}


def level(text: str) -> tuple[Level, Rule]:
    """`study:max` as level and rule; the rule is the mean where none is named."""
    wanted, _, rule = text.partition(":")
    if wanted not in LEVELS or (rule or "mean") not in RULES:
        raise argparse.ArgumentTypeError(f"{text!r}: levels are {LEVELS}, rules {RULES}")
    return wanted, cast(Rule, rule or "mean")


def member_name(path: Path) -> str:
    """`resnet` of `members/resnet/predictions/val.parquet`, of `val/resnet.parquet` and such."""
    return path.parent.parent.name if path.parent.name == "predictions" else path.stem


def refuse_strangers(val: Tables, test: Tables) -> None:
    """The test tables must come from the weights that validation saw, and be of other images."""
    if list(val) != list(test):
        raise ValueError(f"--val has members {list(val)}, --test has {list(test)}")
    for name in val:
        before, after = member_hash(val[name], ""), member_hash(test[name], "")
        if before != after:
            raise ValueError(f"{name}: --val comes from weights {before}, --test from {after}")
        if "val" in test[name].splits:
            raise ValueError(f"--test {name}: holds split 'val'; it is judged on others")
        shared = set(val[name].rows["id"]) & set(test[name].rows["id"])
        if shared:
            raise ValueError(f"--test {name}: {len(shared)} of its ids are in --val as well, "
                             f"{min(shared)!r} for one; it is judged on others")  # fmt: skip


def write(
    asked: argparse.Namespace,
    fitted: FittedVoters,
    judged: EvaluatedVoters,
    val: Tables,
    test: Tables,
) -> None:
    """Every file of the ensemble's folder; the report comes last."""
    folder, chosen = asked.output, asked.voter
    for kind, ensemble in fitted.ensembles.items():
        store.save(folder / "voters" / kind, ensemble)
    store.save(folder, fitted.ensembles[chosen])
    for split, tables in (("val", val), ("test", test)):
        voted = combine_members(fitted.ensembles[chosen], list(tables.values()))
        voted.write(folder / "predictions" / f"{split}.parquet")
    write_results(folder / "results.json", results(folder.name, fitted, judged, test, chosen))
    shown = pictures(asked.images, test)
    page = [*sections(fitted, judged, test, chosen, shown), selective(fitted, val, test, chosen)]
    if asked.attribute:
        page.insert(3, by_part(fitted, test, chosen, asked.attribute, asked.draws))
    html.write_report(folder / "report.html", asked.title, page)


def pictures(images: Path | None, tables: Tables) -> list[tuple[bytes, str]]:
    """The most disputed images with what the members say of each."""
    if images is None:
        return []
    found = disputed(list(tables.values()))
    return [(thumbnail(images / name), f"{name}\n{said}") for name, said in found]


def summary(fitted: FittedVoters, judged: EvaluatedVoters) -> Table:
    """Voters and members with their main figures, for the terminal."""
    table = Table(box=None, pad_edge=False)
    shown = [metric for metric in MAIN if metric != "balanced_accuracy"]
    for column in ("", *shown, f"accuracy - {fitted.best}", ""):
        table.add_column(column, justify="right" if column in MAIN else "left", no_wrap=True)
    for kind, each in judged.voters.items():
        gap = judged.gains[kind]["accuracy"]
        cells = [html.number(each[metric]).split(" ")[0] for metric in shown]
        table.add_row(kind, *cells, signed(gap.figure, 3), verdict("accuracy", gap))
    for name, each in judged.members.items():
        table.add_row(name, *(html.number(each[m]).split(" ")[0] for m in shown), "", "")
    means = [mean_member(judged, metric) for metric in shown]
    table.add_row("mean member", *("-" if m is None else f"{m:.4f}" for m in means), "", "")
    return table
