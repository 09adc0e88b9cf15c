"""The ensemble's report: every voter beside the best single member, and what may be said."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from evaluation.diversity import Pair
from evaluation.ensemble import EvaluatedVoters, FittedVoters, combine_members, disputed
from evaluation.metrics.compute import Estimates, by_attribute
from evaluation.plots import curves as plain
from evaluation.plots import ensemble as drawings
from evaluation.predictions import PredictionTable
from evaluation.reports import html, run
from evaluation.results import Results, notes_of
from evaluation.selective import fit_conformal, fit_referral, risk_coverage
from evaluation.stats.estimate import Estimate
from evaluation.stats.means import mean
from evaluation.stats.paired_tests import COMPARED, Difference, verdict
from evaluation.voters.simple import pool

MAIN = (*run.MAIN, "ece")
PAIRED = ("accuracy", "auroc", "nll")
PARTS = ("accuracy", "balanced_accuracy", "kappa", "auroc", "nll")
Tables = Mapping[str, PredictionTable]
Thumbnail = tuple[bytes, str]


def sections(
    fitted: FittedVoters,
    judged: EvaluatedVoters,
    tables: Tables,
    chosen: str,
    thumbnails: Sequence[Thumbnail] = (),
) -> list[html.Section]:
    """The page from top to bottom; `chosen` is the voter that the ensemble goes by."""
    voted = judged.view(combine_members(fitted.ensembles[chosen], list(tables.values())))
    every = f"All figures of the ensemble ({chosen})"
    return [
        html.Text(sentence(fitted, judged, chosen), lead=True),
        *[html.Text(f"Note: {note}.") for note in (*fitted.warned, *notes_of(tables.values()))],
        voters(fitted, judged, chosen),
        paired(fitted, judged),
        *_left_out(fitted),
        *_pictures(fitted, judged, tables, chosen, voted),
        html.figures_table(judged.voters[chosen], every, judged.rows),
        pairs(judged),
        *disputes(tables, thumbnails),
    ]


def sentence(fitted: FittedVoters, judged: EvaluatedVoters, chosen: str) -> str:
    """What was found, on how much, and whether it is more than the best single member gives."""
    found, gap = judged.voters[chosen]["accuracy"], judged.gains[chosen]["accuracy"]
    said = verdict("accuracy", gap)
    many = html.counted(found, judged.rows)
    word = {"gain": "a gain", "loss": "a loss"}.get(said, said)
    return (
        f"The ensemble ({chosen}) reaches accuracy {html.number(found)} on {many}. "
        f"Against {fitted.best}, the best single member on validation, that is "
        f"{signed(gap.figure)}: {word}."
    )


def signed(figure: Estimate, digits: int = 4) -> str:
    """`+0.0121 (-0.0040 to +0.0282)`."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "not measured"
    value, low, high = (f"{x:+.{digits}f}" for x in (figure.value, figure.low, figure.high))
    return f"{value} ({low} to {high})"


def voters(fitted: FittedVoters, judged: EvaluatedVoters, chosen: str) -> html.Table:
    """Main figures of every voter, of every member and of the mean member."""
    rows: list[tuple[html.Cell, ...]] = [
        (f"voter: {kind}", *(each[metric] for metric in MAIN))
        for kind, each in judged.voters.items()
    ]
    for name, each in judged.members.items():
        best = " (best on val)" if name == fitted.best else ""
        rows.append((f"member: {name}{best}", *(each[metric] for metric in MAIN)))
    rows.append(("mean member", *(mean_member(judged, metric) for metric in MAIN)))
    note = (
        "In small: 95 % intervals. Voters are calibrated by a temperature fitted on validation; "
        "members stand as they are. nll and ece: smaller is better."
    )
    at = list(judged.voters).index(chosen)
    return html.Table(("", *MAIN), rows, "Voters and members", note, strong=[at])


def by_part(
    fitted: FittedVoters, judged_tables: Tables, chosen: str, attribute: str, draws: int
) -> html.Table:
    """The ensemble's main figures for each value of an attribute, by image."""
    voted = combine_members(fitted.ensembles[chosen], list(judged_tables.values()))
    parts = by_attribute(voted, attribute, draws)
    rows: list[tuple[html.Cell, ...]] = [
        (value, each["accuracy"].n, *(each.get(metric) for metric in PARTS))
        for value, each in parts.items()
    ]
    columns = (attribute, "images", *PARTS)
    return html.Table(columns, rows, f"The ensemble ({chosen}) by {attribute}", "By image.")


def mean_member(judged: EvaluatedVoters, metric: str) -> float | None:
    """Mean of a figure over the members; None where a member lacks it."""
    values = [each[metric].value for each in judged.members.values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def paired(fitted: FittedVoters, judged: EvaluatedVoters) -> html.Table:
    """Each voter minus the best single member, and the verdict on its accuracy and NLL."""
    rows: list[tuple[html.Cell, ...]] = []
    for kind, gaps in judged.gains.items():
        cells = [html.Gap(gaps[metric].figure) for metric in PAIRED]
        said = [f"{metric}: {verdict(metric, gaps[metric])}" for metric in ("accuracy", "nll")]
        rows.append((kind, *cells, f"{gaps['accuracy'].p:.3g}", "; ".join(said)))
    some: Difference = next(iter(judged.gains.values()))["accuracy"]
    note = (
        f"Each voter minus {fitted.best} at its own temperature, on the same images. p: "
        f"{some.test}. A gain is claimed only where the interval leaves out 0 and the "
        "corrected p is below 0.05."
    )
    columns = ("", *PAIRED, "p (accuracy)", "verdict")
    return html.Table(columns, rows, f"Difference to the best single member: {fitted.best}", note)


def _left_out(fitted: FittedVoters) -> list[html.Section]:
    if not fitted.left_out:
        return []
    rows = [(kind, reason) for kind, reason in fitted.left_out.items()]
    return [html.Table(("voter", "why it was not fitted"), rows, "Voters left out")]


def _pictures(
    fitted: FittedVoters,
    judged: EvaluatedVoters,
    tables: Tables,
    chosen: str,
    voted: PredictionTable,
) -> list[html.Section]:
    before = judged.view(pool(fitted.ensembles[chosen].voter, list(tables.values())))
    members = {name: judged.view(table) for name, table in tables.items()}
    everyone = {f"ensemble ({chosen})": voted, **members}
    found = [
        html.Picture(drawings.gains(judged.gains), "Right of the line is better.", "Gains"),
        html.Picture(plain.confusion(voted), "Rows are the true classes.", "Confusion"),
        html.Picture(plain.roc_compared(everyone), "Mean over classes.", "ROC"),
        html.Picture(plain.precision_recall(everyone), "", "Precision and recall"),
        html.Picture(
            plain.reliability({"pooled": before, "and calibrated": voted}),
            f"Temperature {fitted.ensembles[chosen].temperature.value:.3f}, fitted on validation. "
            "Bars are 95 % intervals of a bin's accuracy.",
            "Confidence before and after calibration",
        ),
        html.Picture(drawings.risks(everyone), "", "Answering only when sure"),
        html.Picture(
            drawings.agreement(members), f"% of the {judged.rows}.", "Agreement of members"
        ),
        html.Picture(
            drawings.strengths(judged.members, voted.class_names),
            "The member that leads on a class is ringed; intervals stand in results.json.",
            "Who leads on which class",
        ),
    ]
    found += weights(fitted, tables)
    if judged.pairs:
        found.append(html.Picture(drawings.diversity(judged), "", "Diversity and accuracy"))
    return list(found)


def weights(fitted: FittedVoters, tables: Tables) -> list[html.Picture]:
    """What share of the vote each member gets; nothing where no voter weighs them."""
    voters = {kind: each.voter for kind, each in fitted.ensembles.items()}
    names = next(iter(tables.values())).class_names
    drawn = drawings.weights(voters, list(tables), names)
    return [] if drawn is None else [html.Picture(drawn, "% of the vote.", "Weights")]


def pairs(judged: EvaluatedVoters) -> html.Table:
    """Diversity of each two members, and what it is worth."""
    split = judged.split
    worth = (
        f" NLL of the geometric pool {split.pool:.4f} = mean member {split.mean_member:.4f} - "
        f"diversity {split.diversity:.4f}."
    )
    return diversities(judged.pairs, judged.agreement, judged.rows, worth)


def diversities(
    found: Mapping[str, Pair], agreement: Estimate, counts: str, worth: str = ""
) -> html.Table:
    """Diversity of each two members, by `a & b`; `worth` ends the note."""
    rows: list[tuple[html.Cell, ...]] = [
        (name, p.disagreement, p.double_fault, p.q, p.kappa, p.error_correlation)
        for name, p in found.items()
    ]
    columns = ("pair", "disagreement", "double fault", "Q", "kappa", "error correlation")
    many = html.counted(agreement, counts)
    note = f"Share of the {many} on which all members agree: {html.number(agreement, 3)}.{worth}"
    return html.Table(columns, rows, "Diversity", note)


def disputes(tables: Tables, thumbnails: Sequence[Thumbnail] = ()) -> list[html.Section]:
    """The images that members differ on most, as pictures where there are any."""
    heading = "Images the members disagree on most"
    if thumbnails:
        pictures, captions = zip(*thumbnails, strict=True)
        return [html.Thumbnails(pictures, captions, heading)]
    rows = disputed(list(tables.values()))
    note = f"Members in the order {', '.join(tables)}."
    return [html.Table(("image", "what is true and what each member says"), rows, heading, note)]


def selective(fitted: FittedVoters, val: Tables, test: Tables, chosen: str) -> html.Table:
    """Referral thresholds and conformal sets chosen on validation, and what they do on test."""
    ensemble = fitted.ensembles[chosen]
    before, after = (combine_members(ensemble, list(t.values())).labeled for t in (val, test))
    rows = [
        *[_referred(before, after, risk) for risk in (0.01, 0.02, 0.05)],
        *[_in_sets(before, after, alpha) for alpha in (0.05, 0.1)],
    ]
    curve = risk_coverage(after.probabilities, after.labels)
    note = (
        f"On {len(after):,} images of {len(set(after.patients)):,} patients; in small: 95 % "
        f"intervals. Area under risk and coverage on test: {curve.aurc:.4f}. Thresholds come "
        "from validation."
    )
    columns = ("", "images answered", "error rate", "classes in a set")
    return html.Table(columns, rows, "Referral and sets of classes", note)


def _referred(
    before: PredictionTable, after: PredictionTable, risk: float
) -> tuple[html.Cell, ...]:
    answered = fit_referral(before, risk).answered(after.probabilities)
    wrong = after.logits.argmax(axis=1) != after.labels
    error = mean(after.patients[answered], wrong[answered], "no image is answered")
    return f"refer above risk {risk:g}", mean(after.patients, answered), error, None


def _in_sets(
    before: PredictionTable, after: PredictionTable, alpha: float
) -> tuple[html.Cell, ...]:
    limit = fit_conformal(before, alpha)
    sets = limit.sets(after.probabilities)
    missed = ~sets[np.arange(len(after)), after.labels]
    said = " (validation too small: whole sets)" if limit.whole else ""
    size = mean(after.patients, sets.sum(axis=1))
    return f"sets at {1 - alpha:.0%}{said}", 1.0, mean(after.patients, missed), size


def results(
    name: str, fitted: FittedVoters, judged: EvaluatedVoters, tables: Tables, chosen: str
) -> Results:
    """The ensemble's figures, those of every voter and member, and the paired differences."""
    first = next(iter(tables.values()))
    others: dict[str, Estimates] = {f"member/{n}": f for n, f in judged.members.items()}
    others |= {f"voter/{kind}": each for kind, each in judged.voters.items()}
    for kind, gaps in judged.gains.items():
        others[f"gain/{kind}"] = {metric: gap.figure for metric, gap in gaps.items()}
    meta = {
        "voter": chosen,
        "best_member_on_val": fitted.best,
        "temperatures": {k: c.temperature.value for k, c in fitted.ensembles.items()},
        "left_out": fitted.left_out,
        "notes": [*fitted.warned, *notes_of(tables.values())],
        "p_values": {k: {m: g[m].p for m in (*COMPARED, "auroc")} for k, g in judged.gains.items()},
        "verdict": verdict("accuracy", judged.gains[chosen]["accuracy"]),
        "agreement": asdict(judged.agreement),
        "diversity": {name: asdict(pair) for name, pair in judged.pairs.items()},
        "rows": judged.rows,
        "manifest_digest": first.meta.get("manifest_digest"),
    }
    split = "+".join(first.splits)
    return Results(name, split, first.class_names, judged.voters[chosen], others, meta=meta)
