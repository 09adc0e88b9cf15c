"""Tables of conformal sets in reports."""

from functools import cache
from itertools import product

from evaluation.metrics.conformal import (
    BY_CLASS,
    SetCoverage,
    evaluate_sets,
    fit_conformal_sets,
)
from evaluation.predictions import PredictionTable, has_grades
from evaluation.reports.html import SMALL_PRINT, Cell, Table

ALPHAS = (0.1, 0.05)  # sets without the label, at most
MAX_GROUPS = 20  # values of an attribute that get limits of their own


def conformal_tables(val: PredictionTable, test: PredictionTable) -> list[Table]:
    """A table with a row per rate and kind of limit, then tables of coverage by class and group."""
    rules = {"": "one limit", BY_CLASS: "a limit for each class"}
    rules |= {name: f"a limit for each {name}" for name in shared_attributes(val, test)}

    @cache
    def evaluate(alpha: float, by: str, groups: str) -> list[SetCoverage]:
        """Coverage on test in each of `groups`, with limits fitted on val for each of `by`."""
        return evaluate_sets(fit_conformal_sets(val, alpha, by), test, groups)

    rows: list[tuple[Cell, ...]] = []
    for alpha, (by, rule) in product(ALPHAS, rules.items()):
        (overall,), lowest = evaluate(alpha, by, ""), evaluate(alpha, by, by or BY_CLASS)
        cells = overall.coverage, overall.set_size, lowest_coverage(lowest)
        rows.append((f"{percent(1 - alpha)}, {rule}", *cells))
    note = (
        f"The classes that contain the label in so many images of new patients like those of val; "
        f"limits were fitted there, each patient counting once. {SMALL_PRINT} With one limit, sets "
        "of a rare class may contain it less often than stated; with a limit for each class, each "
        "class is contained at the stated rate."
    )
    if has_grades(test.class_names):
        note += " The grades of a set have no gaps."
    columns = ("", "sets with the label", "classes in a set", "lowest of a class or group")
    first = Table(columns, rows, "Prediction sets", note)
    of_groups = {by: [evaluate(ALPHAS[0], own, by) for own in ("", by)] for by in rules if by}
    return [first, *(_group_table(by, rules[by], *of) for by, of in of_groups.items())]


def percent(rate: float) -> str:
    """`97.5 %` of 0.975."""
    return f"{100 * rate:g} %"


def shared_attributes(val: PredictionTable, test: PredictionTable) -> list[str]:
    """Names of attributes that both tables have, with 2 to `MAX_GROUPS` values in val."""
    return [name for name in test.attributes if name in val.attributes
            and 1 < val.rows[name].nunique() <= MAX_GROUPS]  # fmt: skip


def lowest_coverage(groups: list[SetCoverage]) -> str:
    """The lowest coverage and its group, `0.812 (ill)`; a dash if no group has images."""
    known = [(g.coverage.value, g.group) for g in groups if g.coverage.value is not None]
    return "{:.3f} ({})".format(*min(known)) if known else "-"


def _group_table(
    by: str, rule: str, one_limit: list[SetCoverage], own_limits: list[SetCoverage]
) -> Table:
    """One row per class or value of `by`: coverage at the first of `ALPHAS`, by both limits."""
    rows = []
    for one, own in zip(one_limit, own_limits, strict=True):
        patients = own.limit.num_patients if own.limit else 0
        band = "-" if own.band is None else "{:.2f} to {:.2f}".format(*own.band)
        rows.append((own.group, patients, one.coverage, own.coverage, band, own.set_size))
    columns = (by, "patients in val", "sets with the label, one limit", f"{rule}", "expected",
               "classes in a set")  # fmt: skip
    note = (
        f"Sets at {percent(1 - ALPHAS[0])}. Expected: where 95 of 100 samples of val and test "
        "lie if the patients of both are alike. With too few patients in val a set has all classes."
    )
    return Table(columns, rows, f"Prediction sets by {by}", note)
