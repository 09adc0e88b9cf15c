"""Members side by side: figures, who leads where, how they differ, paired tests, learning."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from evaluation import diversity
from evaluation.grouping import rows_of
from evaluation.metrics.compute import Estimates, by_attribute, compute_metrics
from evaluation.plots import curves as plain
from evaluation.plots import ensemble as drawings
from evaluation.predictions import PredictionTable, align
from evaluation.reports import html
from evaluation.reports.ensemble import diversities, signed
from evaluation.results import Results, notes_of
from evaluation.stats.estimate import DRAWS, Estimate
from evaluation.stats.paired_tests import Difference, corrected, differences, verdict
from evaluation.voters.simple import stack

MAIN = ("accuracy", "balanced_accuracy", "auroc", "f1_macro", "kappa", "nll", "ece")
PARTS = ("accuracy", "kappa")
PAIRED = ("accuracy", "auroc", "nll")
Tables = Mapping[str, PredictionTable]


@dataclass(frozen=True)
class Compared:
    """Figures of each member; each two members' difference and diversity, by `a & b`.

    `rows` are what was counted: images, studies or patients.
    `parts` holds each member's figures for each value of an attribute, where one was asked for.
    """

    members: dict[str, Estimates]
    gaps: dict[str, dict[str, Difference]]
    pairs: dict[str, diversity.Pair]
    agreement: Estimate
    rows: str
    parts: dict[str, dict[str, Estimates]] = field(default_factory=dict)


def compare(tables: Tables, draws: int = DRAWS, seed: int = 0, by: str = "") -> Compared:
    """Every member and every two members; p-values corrected by Holm over the pairs."""
    aligned = dict(zip(tables, align(list(tables.values())), strict=True))
    known = [table.labeled for table in aligned.values()]
    said, names, who = stack(known), list(aligned), known[0].patients
    found = diversity.pairs(said, known[0].labels, who, draws, seed)
    gaps = {
        f"{a} & {b}": differences(aligned[a], aligned[b], draws, seed)
        for a, b in combinations(aligned, 2)
    }
    return Compared(
        members={name: compute_metrics(table, draws, seed) for name, table in aligned.items()},
        gaps=corrected(gaps),
        pairs={f"{names[i]} & {names[j]}": pair for (i, j), pair in found.items()},
        agreement=diversity.agreement(said, who, draws, seed),
        rows=rows_of(known[0]),
        parts={n: by_attribute(t, by, draws, seed) for n, t in aligned.items()} if by else {},
    )


def sentence(found: Compared) -> str:
    """Which member reaches most, and whether the second is beyond doubt worse."""
    accuracy = {name: each["accuracy"] for name, each in found.members.items()}
    order = sorted(accuracy, key=lambda name: -(accuracy[name].value or 0.0))
    first = accuracy[order[0]]
    many = html.counted(first, found.rows)
    said = f"{order[0]} reaches the highest accuracy, {html.number(first)}, on {many}."
    if len(order) < 2:
        return said
    key = next(k for k in found.gaps if set(k.split(" & ")) == set(order[:2]))
    gap = found.gaps[key]["accuracy"]
    apart = verdict("accuracy", gap) != "no evidence of gain"
    word = "more than chance would give" if apart else "no evidence that the two differ"
    first_named, second = key.split(" & ")
    return f"{said} {first_named} minus {second}: {signed(gap.figure)}, {word}."


def sections(
    found: Compared, tables: Tables, histories: Mapping[str, pd.DataFrame]
) -> list[html.Section]:
    """The page from top to bottom."""
    drawn: list[html.Section] = [
        html.Picture(plain.roc_compared(tables), "Mean over classes.", "ROC"),
        html.Picture(plain.precision_recall(tables), "", "Precision and recall"),
        html.Picture(plain.reliability(tables), "Bars are 95 % intervals.", "Confidence"),
        html.Picture(drawings.risks(tables), "", "Answering only when sure"),
    ]
    return [
        html.Text(sentence(found), lead=True),
        *[html.Text(f"Note: {note}.") for note in notes_of(tables.values())],
        standings(found),
        *by_part(found),
        strengths(found, tables),
        html.Picture(drawings.strengths(found.members, _classes(tables)), "The leader is ringed."),
        *pairwise(found, tables),
        *drawn,
        *[html.Picture(plain.confusion(t), heading=f"Confusion: {n}") for n, t in tables.items()],
        *[
            html.Picture(plain.learning_curves(history), heading=f"Learning: {name}")
            for name, history in histories.items()
        ],
    ]


def standings(found: Compared) -> html.Table:
    """Main figures of each member."""
    rows: list[tuple[html.Cell, ...]] = [
        (name, *(each[m] for m in MAIN)) for name, each in found.members.items()
    ]
    note = "In small: 95 % intervals. nll and ece: smaller is better."
    return html.Table(("", *MAIN), rows, "Members", note, digits=3)


def pairwise(found: Compared, tables: Tables) -> list[html.Section]:
    """How each two members differ; nothing for one alone."""
    if len(tables) < 2:
        return []
    return [
        paired(found),
        html.Picture(drawings.agreement(tables), f"% of the {found.rows}.", "Agreement"),
        diverse(found),
    ]


def by_part(found: Compared) -> list[html.Section]:
    """Accuracy and kappa of each member for each value of the attribute."""
    if not found.parts:
        return []
    members = list(found.parts)
    columns = ("", found.rows, *(f"{m} {metric}" for m in members for metric in PARTS))
    rows: list[tuple[html.Cell, ...]] = []
    for value in found.parts[members[0]]:
        each = [found.parts[m][value].get(metric) for m in members for metric in PARTS]
        rows.append((value, found.parts[members[0]][value]["accuracy"].n, *each))
    return [html.Table(columns, rows, "By attribute", digits=3)]


def strengths(found: Compared, tables: Tables) -> html.Table:
    """Recall of each member on each class, and who leads."""
    names = _classes(tables)
    rows: list[tuple[html.Cell, ...]] = []
    for c in names:
        each = [member[f"recall/{c}"] for member in found.members.values()]
        values = [f.value if f.value is not None else -1.0 for f in each]
        leader = list(found.members)[int(np.argmax(values))] if max(values) >= 0 else "none"
        rows.append((c, *each, leader))
    note = "Recall. Which member leads is what this split says; intervals that overlap say little."
    columns = ("class", *found.members, "leads")
    return html.Table(columns, rows, "Strengths per class", note, digits=3)


def paired(found: Compared) -> html.Table:
    """First minus second of each two members, with corrected p-values."""
    rows: list[tuple[html.Cell, ...]] = [
        (name, *(cell for m in PAIRED for cell in (html.Gap(gap[m].figure), f"{gap[m].p:.3g}")))
        for name, gap in found.gaps.items()
    ]
    columns = ("first & second", *(cell for m in PAIRED for cell in (m, "p")))
    first = next(iter(found.gaps.values()))
    note = f"First minus second. p for accuracy: {first['accuracy'].test}."
    return html.Table(columns, rows, "Paired differences", note)


def diverse(found: Compared) -> html.Table:
    """Diversity of each two members."""
    return diversities(found.pairs, found.agreement, found.rows)


def results(name: str, found: Compared, tables: Tables) -> Results:
    """The members' figures and the paired differences as results.json holds them.

    Its subject is the member that was named first: the best on test would be chosen on test.
    """
    named, first = next(iter(tables.items()))
    others = {f"member/{n}": each for n, each in found.members.items()}
    for pair, gap in found.gaps.items():
        others[f"difference/{pair}"] = {metric: each.figure for metric, each in gap.items()}
    for member, values in found.parts.items():
        others |= {f"member/{member}/{value}": each for value, each in values.items()}
    meta = {
        "notes": notes_of(tables.values()),
        "agreement": asdict(found.agreement),
        "diversity": {name: asdict(pair) for name, pair in found.pairs.items()},
        "rows": found.rows,
        "p_values": {pair: {m: gap[m].p for m in gap} for pair, gap in found.gaps.items()},
    }
    meta["first"] = named
    split = "+".join(first.splits)
    return Results(name, split, first.class_names, found.members[named], others, meta=meta)


def frame(found: Compared) -> pd.DataFrame:
    """One row a member and figure: for a CSV."""
    rows = [
        {"member": name, "figure": metric, **vars(figure)}
        for name, each in found.members.items()
        for metric, figure in each.items()
    ]
    return pd.DataFrame(rows)


def _classes(tables: Tables) -> list[str]:
    return next(iter(tables.values())).class_names
