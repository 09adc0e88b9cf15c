from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.ensemble import combine_members, evaluate_voters, fit_voters, most_disputed
from evaluation.grouping import Level, aggregate
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import comparison
from evaluation.reports.comparison import compare_models
from evaluation.reports.ensemble import (
    MAIN,
    ensemble_results,
    ensemble_sections,
    mean_of_members,
    selective_table,
    summary_sentence,
)
from evaluation.reports.html import Plot, Table, Text, write_report
from evaluation.results import read_results, write_results
from evaluation.stats.estimate import Estimate
from evaluation.stats.paired_tests import gain_or_loss
from evaluation.voters.store import save
from tests.evaluation.tables import expert_tables, make_table


def _tables(split: str, seed: int) -> dict[str, PredictionTable]:
    found = expert_tables(900, split, seed)
    return {
        name: replace(table, meta={"weights": f"hash of {name}"})
        for name, table in zip(("first", "second", "third"), found, strict=True)
    }


def _copies(split: str) -> dict[str, PredictionTable]:
    table = make_table(900, images_per_patient=3, split=split, seed=1)
    return {f"copy{i}": replace(table, meta={"weights": f"hash{i}"}) for i in range(5)}


def test_a_ensemble_of_experts_gains_and_says_so() -> None:
    val, test = _tables("val", 0), _tables("test", 1)
    fitted = fit_voters(val, "body_part", ["elbow"])
    judged = evaluate_voters(fitted, test, draws=300)
    assert fitted.best in ("first", "second")
    assert fitted.left_out == {}
    assert gain_or_loss("accuracy", judged.gains["per_group"]["accuracy"]) == "gain"
    assert summary_sentence(fitted, judged, "per_group").endswith(": a gain.")
    assert judged.members["first"] == compute_metrics(test["first"], draws=300)


def test_five_copies_gain_nothing_and_have_no_diversity() -> None:
    fitted = fit_voters(_copies("val"))
    judged = evaluate_voters(fitted, _copies("test"), draws=300)
    for kind, gaps in judged.gains.items():
        if kind != "stacked":  # it recalibrates class by class
            assert gain_or_loss("accuracy", gaps["accuracy"]) == "no evidence of gain", kind
            assert gaps["accuracy"].figure.value == 0, kind
    for kind in ("soft", "geometric", "learned", "greedy", "per_class"):
        assert gain_or_loss("nll", judged.gains[kind]["nll"]) == "no evidence of gain", kind
    assert judged.agreement.value == 1.0
    assert all(pair.disagreement.value == 0 for pair in judged.pairs.values())
    assert "no evidence of gain" in summary_sentence(fitted, judged, "soft")


def test_a_planted_overconfidence_is_halved_by_pooling_and_temperature() -> None:
    val, test = (
        {n: replace(t, logits=3 * t.logits) for n, t in _tables(s, i).items()}
        for i, s in enumerate(("val", "test"))
    )
    judged = evaluate_voters(fit_voters(val), test, draws=50)
    mean = mean_of_members(judged, "ece")
    assert mean is not None
    assert judged.voters["soft"]["ece"].value <= mean / 2


def test_what_may_not_be_fitted_is_refused_or_named() -> None:
    with pytest.raises(ValueError, match="an ensemble may not be fitted on split 'test'"):
        fit_voters(_tables("test", 0))
    small = {name: table.take(np.arange(200)) for name, table in _tables("val", 0).items()}
    assert "a stack needs 50 x 3 members x 3 classes" in fit_voters(small).left_out["stacked"]


def test_tables_of_other_weights_are_refused() -> None:
    fitted, test = fit_voters(_tables("val", 0)), _tables("test", 1)
    test["second"] = replace(test["second"], meta={"weights": "another"})
    with pytest.raises(ValueError, match="table 2 comes from weights another"):
        combine_members(fitted.ensembles["soft"], list(test.values()))


def test_the_order_of_rows_and_classes_does_not_matter() -> None:
    fitted, test = fit_voters(_tables("val", 0), "body_part"), list(_tables("test", 1).values())
    order = np.random.default_rng(0).permutation(900)
    moved = [table.take(order) if i else table for i, table in enumerate(test)]
    for ensemble in fitted.ensembles.values():
        assert np.array_equal(
            combine_members(ensemble, moved).logits, combine_members(ensemble, test).logits
        )


def test_the_image_that_members_differ_on_most_comes_first() -> None:
    tables = list(_tables("test", 1).values())
    sure = np.full((900, 3), [5.0, 4.9, 4.8])
    sure[17] = [30, 0, 0]
    other = sure.copy()
    other[17] = [0, 0, 30]
    first, second = (replace(tables[0], logits=x) for x in (sure, other))
    name, said = most_disputed([first, second], 3)[0]
    assert name == tables[0].rows["id"].iloc[17]
    assert "none 1.00, comminuted 1.00" in said


def test_report_and_results_hold_every_voter(tmp_path: Path) -> None:
    val, test = _tables("val", 0), _tables("test", 1)
    fitted = fit_voters(val, "body_part", weights=[1, 1, 0])
    judged = evaluate_voters(fitted, test, draws=100)
    page = [
        *ensemble_sections(fitted, judged, test, "soft"),
        selective_table(fitted, val, test, "soft"),
    ]
    write_report(tmp_path / "report.html", "An ensemble", page)
    write_results(
        tmp_path / "results.json", ensemble_results("ensemble", fitted, judged, test, "soft")
    )
    text, read = (tmp_path / "report.html").read_text(), read_results(tmp_path / "results.json")
    assert set(fitted.ensembles) == set(judged.voters) >= {"weighted", "per_group", "learned"}
    for kind in fitted.ensembles:
        assert f"voter: {kind}" in text
        assert read.others[f"voter/{kind}"]["nll"] == judged.voters[kind]["nll"]
    assert {metric for metric in MAIN} <= set(read.metrics)
    assert read.meta["verdict"] == gain_or_loss("accuracy", judged.gains["soft"]["accuracy"])
    assert Estimate(**read.meta["agreement"]) == judged.agreement
    apart = read.meta["diversity"]["first & third"]["disagreement"]
    assert apart["low"] < apart["value"] < apart["high"]
    assert (apart["n"], apart["patients"]) == (900, 900)


@pytest.mark.parametrize(("level", "many"), [("image", "160 images of 40 patients"),
                                             ("study", "80 studies of 40 patients"),
                                             ("patient", "40 patients")])  # fmt: skip
def test_what_was_counted_is_called_by_its_name(level: Level, many: str) -> None:
    def films(split: str, seed: int) -> PredictionTable:
        table = make_table(160, images_per_patient=4, split=split, seed=seed, gain=2.0)
        label, study = np.repeat(np.arange(40) % 3, 4), np.tile(["1", "1", "2", "2"], 40)
        moved = table.logits + 2 * (np.eye(3)[label] - np.eye(3)[table.labels])
        rows = table.rows.assign(label=label, study=study, id=split + table.rows["id"])
        return PredictionTable(rows, moved, table.class_names, {"weights": str(seed % 2)})

    val, test = ({"a": films(s, at), "b": films(s, at + 1)} for s, at in (("val", 0), ("test", 2)))
    fitted = fit_voters(val)
    judged = evaluate_voters(fitted, test, draws=20, view=lambda table: aggregate(table, level))
    compared = compare_models({name: judged.view(table) for name, table in test.items()}, draws=20)
    page = ensemble_sections(fitted, judged, test, "soft")
    assert f" on {many}. " in summary_sentence(fitted, judged, "soft")
    assert f" on {many}. " in comparison.summary_sentence(compared)
    titles = [axes.get_title(loc="left") for part in page if isinstance(part, Plot)
              for axes in getattr(part.image, "axes", [])]  # fmt: skip
    assert many.split(" ")[1] in titles
    drawn = next(p.image for p in page if isinstance(p, Plot) and p.heading == "Confusion")
    shown = sum(int(text.get_text()) for text in drawn.axes[0].texts)
    assert shown == judged.voters["soft"]["accuracy"].n
    notes = [part.note for part in page if isinstance(part, Table)]
    assert any(note.startswith(f"Share of the {many} on which all") for note in notes)


def test_what_is_answered_and_its_errors_have_intervals() -> None:
    val, test = _tables("val", 0), _tables("test", 1)
    table = selective_table(fit_voters(val), val, test, "soft")
    assert "On 900 images of 900 patients" in table.note
    for _, answered, error, _ in table.rows[:3]:
        assert answered.n == 900
        assert error.n == round(900 * answered.value)
        assert error.low <= error.value < error.high
    for _, answered, missed, size in table.rows[3:]:
        assert answered == 1.0
        assert missed.low < missed.value < missed.high
        assert size.low < size.value < size.high


def test_the_subject_of_a_comparison_is_not_chosen_on_test() -> None:
    test = dict(reversed(_tables("test", 1).items()))
    found = compare_models(test, draws=20)
    said = comparison.comparison_results("compare", found, test)
    assert said.metrics == found.members["third"]
    assert said.meta["first"] == "third"
    assert found.members["third"]["accuracy"].value < found.members["first"]["accuracy"].value


def test_what_the_data_warns_of_stands_in_every_report() -> None:
    said = "leak that was allowed: 2 patients"
    val, test = (
        {n: replace(t, meta={**t.meta, "notes": [said]}) for n, t in _tables(split, at).items()}
        for at, split in enumerate(("val", "test"))
    )
    fitted = fit_voters(val)
    judged, compared = evaluate_voters(fitted, test, draws=20), compare_models(test, draws=20)
    for page in (
        ensemble_sections(fitted, judged, test, "soft"),
        comparison.comparison_sections(compared, test, {}),
    ):
        assert f"Note: {said}." in [part.body for part in page if isinstance(part, Text)]
    for found in (
        ensemble_results("ensemble", fitted, judged, test, "soft"),
        comparison.comparison_results("compare", compared, test),
    ):
        assert said in found.meta["notes"]


@pytest.mark.parametrize("n", [4, 12])
def test_a_handful_of_images_and_an_absent_class_still_give_a_report(
    tmp_path: Path, n: int
) -> None:
    val, test = (
        {name: table.take(np.flatnonzero(table.labels != 2)[:n]) for name, table in made.items()}
        for made in (_tables("val", 0), _tables("test", 1))
    )
    fitted = fit_voters(val, "body_part")
    judged = evaluate_voters(fitted, test, draws=50)
    for kind in fitted.ensembles:
        save(tmp_path / kind, fitted.ensembles[kind])
    write_results(tmp_path / "r.json", ensemble_results("ensemble", fitted, judged, test, "soft"))
    page = [
        *ensemble_sections(fitted, judged, test, "soft"),
        selective_table(fitted, val, test, "soft"),
    ]
    write_report(tmp_path / "report.html", "An ensemble", page)
    assert judged.voters["soft"]["auroc"].value is None
    assert "stacked" in fitted.left_out
