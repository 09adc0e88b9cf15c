from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from evaluation.ensemble import (
    combine_members,
    ensemble_predictions,
    evaluate_referral,
    evaluate_voters,
    fit_voters,
)
from evaluation.metrics.registry import summary_metrics
from evaluation.plots.ensemble import member_weight_rows
from evaluation.predictions import Level, PredictionTable, aggregate
from evaluation.reports import comparison
from evaluation.reports.comparison import compare_models
from evaluation.reports.conformal import conformal_tables
from evaluation.reports.ensemble import (
    disputed_section,
    ensemble_results,
    ensemble_sections,
    first_screen,
    gain_table,
    referral_table,
    summary_sentence,
    voter_table,
)
from evaluation.reports.html import Overview, Plot, Table, section_html, write_report
from evaluation.reports.subgroups import subgroup_sentences
from evaluation.results import read_results, write_results
from evaluation.stats.estimate import Estimate
from evaluation.stats.paired_tests import better_or_worse
from evaluation.voters import VOTERS, VoterOptions, VoterSpec
from evaluation.voters.simple import Weighted, stacked_probabilities
from evaluation.voters.store import FittedEnsemble, load, save
from tests.evaluation.tables import make_table, named_copies, named_experts


@dataclass(frozen=True)
class MostAccurate(Weighted):
    """All weight on the member of highest accuracy."""

    name: ClassVar[str] = "most_accurate"


def _fit_most_accurate(tables: Sequence[PredictionTable], options: VoterOptions) -> MostAccurate:
    members, labels = stacked_probabilities(tables), tables[0].labels
    accuracy = (members.argmax(axis=2) == labels).mean(axis=1)
    return MostAccurate(np.eye(len(tables))[accuracy.argmax()])


def test_a_voter_registered_in_one_place_is_fitted_evaluated_stored_and_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = VoterSpec(
        "most_accurate", "Most accurate member", MostAccurate, ("validation",), _fit_most_accurate
    )
    monkeypatch.setitem(VOTERS, "most_accurate", spec)
    val, test = named_experts("val", 0), named_experts("test", 1)
    fitted = fit_voters(val)
    evaluated = evaluate_voters(fitted, test, draws=20)
    ensemble = fitted.ensembles["most_accurate"]
    best = int(ensemble.voter.weight_rows([])[""].argmax())
    alone = evaluated.calibrated_metrics[list(test)[best]]["accuracy"]
    assert evaluated.voter_metrics["most_accurate"]["accuracy"].value == alone.value

    assert "voter: Most accurate member" in section_html(
        voter_table(fitted, evaluated, "most_accurate")
    )
    assert "<td>Most accurate member</td>" in section_html(gain_table(fitted, evaluated))
    predictions = ensemble_predictions(ensemble, test)
    lead, answers = first_screen(fitted, evaluated, predictions, {}, [])
    assert "The ensemble (Most accurate member) reaches" in lead.body
    assert answers.answers["What is it?"][0].startswith("An ensemble of 3 networks that answers")
    sections = ensemble_sections(fitted, evaluated, predictions)
    rows = member_weight_rows({"most_accurate": ensemble}, ensemble.class_names)
    np.testing.assert_array_equal(rows["Most accurate member"], np.eye(3)[best])
    [weights] = [s.image for s in sections if s.heading == "Member weights"]
    labels = [label.get_text() for label in weights.axes[0].get_yticklabels()]
    assert "Most accurate member" in labels
    results = ensemble_results("e", fitted, evaluated, test, "most_accurate")
    assert results.others["voter/most_accurate"] == evaluated.voter_metrics["most_accurate"]

    save(tmp_path, ensemble)
    loaded: FittedEnsemble = load(tmp_path, ensemble.members, ensemble.class_names)
    assert isinstance(loaded.voter, MostAccurate)


def test_the_summary_states_whether_the_ensemble_is_better() -> None:
    val, test = named_experts("val", 0), named_experts("test", 1)
    fitted = fit_voters(val, VoterOptions("body_part"))
    evaluated = evaluate_voters(fitted, test, draws=300)
    assert summary_sentence(fitted, evaluated, "per_group").endswith("), better.")
    copies = fit_voters(named_copies("val"))
    equal = evaluate_voters(copies, named_copies("test"), draws=100)
    assert summary_sentence(copies, equal, "soft").endswith(", no clear difference.")
    outcomes = {row[0]: row[-1] for row in gain_table(copies, equal).rows}
    assert outcomes["Learned weights"] == f"the same predictions as {copies.best_member}"


def test_calibrated_and_raw_numbers_are_labeled() -> None:
    val, test = named_experts("val", 0), named_experts("test", 1)
    fitted = fit_voters(val)
    evaluated = evaluate_voters(fitted, test, draws=20)
    table = voter_table(fitted, evaluated, "soft")
    rows = {row[0].replace(" (best on val)", ""): row[1:] for row in table.rows}
    assert all(name.endswith((", calibrated", ", raw")) for name in rows)
    names = summary_metrics()
    for label, metrics in (
        ("voter: Mean probability, calibrated", evaluated.voter_metrics["soft"]),
        ("member: first, calibrated", evaluated.calibrated_metrics["first"]),
        ("member: first, raw", evaluated.member_metrics["first"]),
    ):
        assert rows[label] == tuple(metrics[name] for name in names)
    results = ensemble_results("e", fitted, evaluated, test, "soft")
    assert results.others["calibrated_member/first"] == evaluated.calibrated_metrics["first"]


def test_report_and_results_have_every_voter(tmp_path: Path) -> None:
    val, test = named_experts("val", 0), named_experts("test", 1)
    fitted = fit_voters(val, VoterOptions("body_part", weights=[1, 1, 0]))
    evaluated = evaluate_voters(fitted, test, draws=100)
    predictions = ensemble_predictions(fitted.ensembles["soft"], test)
    page = ensemble_sections(fitted, evaluated, predictions, disputed_section(test))
    write_report(tmp_path / "report.html", "An ensemble", page)
    results = ensemble_results("ensemble", fitted, evaluated, test, "soft")
    write_results(tmp_path / "results.json", results)
    text, loaded = (tmp_path / "report.html").read_text(), read_results(tmp_path / "results.json")
    assert "Images with the largest disagreement of members" in text
    assert "kappa_quadratic" not in text
    voters = set(evaluated.voter_metrics)
    assert set(fitted.ensembles) == voters >= {"weighted", "per_group", "learned"}
    for name in fitted.ensembles:
        assert f"voter: {VOTERS[name].label}" in text
        assert loaded.others[f"voter/{name}"]["nll"] == evaluated.voter_metrics[name]["nll"]
    assert set(summary_metrics()) <= set(loaded.metrics)
    accuracy = evaluated.gains["soft"]["accuracy"]
    assert loaded.meta["better_or_worse"] == better_or_worse("accuracy", accuracy)
    assert Estimate(**loaded.meta["agreement"]) == evaluated.agreement
    disagreement = loaded.meta["diversity"]["first & third"]["disagreement"]
    assert disagreement["low"] < disagreement["value"] < disagreement["high"]
    assert (disagreement["n"], disagreement["patients"]) == (900, 900)


def _patients_of_four_images(split: str, seed: int) -> PredictionTable:
    table = make_table(160, images_per_patient=4, split=split, seed=seed, gain=2.0)
    label, study = np.repeat(np.arange(40) % 3, 4), np.tile(["1", "1", "2", "2"], 40)
    logits = table.logits + 2 * (np.eye(3)[label] - np.eye(3)[table.labels])
    rows = table.rows.assign(label=label, study=study, id=split + table.rows["id"])
    return PredictionTable(rows, logits, table.class_names, {"weights": str(seed % 2)})


@pytest.mark.parametrize(("level", "sample"), [("image", "160 images of 40 patients"),
                                               ("study", "80 studies of 40 patients"),
                                               ("patient", "40 patients")])  # fmt: skip
def test_reports_name_what_was_counted(level: Level, sample: str) -> None:
    val, test = (
        {name: _patients_of_four_images(split, seed + i) for i, name in enumerate("ab")}
        for seed, split in ((0, "val"), (2, "test"))
    )
    fitted = fit_voters(val)
    evaluated = evaluate_voters(fitted, test, draws=20, level=(level, "mean"))
    compared = compare_models({name: aggregate(table, level) for name, table in test.items()}, 20)
    predictions = ensemble_predictions(fitted.ensembles["soft"], test, (level, "mean"))
    sections = ensemble_sections(fitted, evaluated, predictions)
    assert f" on {sample}. " in summary_sentence(fitted, evaluated, "soft")
    assert f" on {sample}. " in comparison.summary_sentence(compared)
    plots = {s.heading: s.image for s in sections if isinstance(s, Plot)}
    confusion = plots["Confusion matrix"].axes[0]
    assert confusion.get_title(loc="left") == sample.split(" ")[1]
    counts = sum(int(text.get_text()) for text in confusion.texts)
    assert counts == evaluated.voter_metrics["soft"]["accuracy"].n
    notes = [section.note for section in sections if isinstance(section, Table)]
    assert any(n.startswith("All members agree") and f"of the {sample}." in n for n in notes)


def test_the_table_of_referral_states_the_test_set() -> None:
    val, test = named_experts("val", 0), named_experts("test", 1)
    ensemble = fit_voters(val).ensembles["soft"]
    on_val, on_test = (combine_members(ensemble, list(t.values())) for t in (val, test))
    table = referral_table(*evaluate_referral(on_val, on_test), on_test)
    assert "On 900 images of 900 patients" in table.note
    assert len(table.rows) == 3


def test_the_subject_of_a_comparison_is_the_first_member_and_not_the_best() -> None:
    test = dict(reversed(named_experts("test", 1).items()))
    compared = compare_models(test, draws=20)
    results = comparison.comparison_results("compare", compared, test)
    assert results.metrics == compared.metrics["third"]
    assert results.meta["first"] == "third"
    accuracies = [compared.metrics[name]["accuracy"].value for name in ("third", "first")]
    assert accuracies[0] < accuracies[1]


def test_a_comparison_has_the_groups_of_each_member() -> None:
    """The first member is informative for wrists, the second for elbows."""
    test = named_experts("test", 1, 300)
    compared = compare_models(test, draws=20)
    sentences = subgroup_sentences(compared.subgroups)
    worse = [text.partition(" (")[0] for text in sentences[:2]]
    start = "Worse than for all other images: body_part"
    assert worse == [f"first: {start}: elbow", f"second: {start}: wrist"]
    page = comparison.comparison_sections(compared, test, {})
    headings = [section.heading for section in page if section.heading.startswith("Subgroups")]
    assert headings == [f"Subgroups: {name}" for name in test]
    results = comparison.comparison_results("compare", compared, test)
    assert results.subgroups == compared.subgroups["first"]
    with pytest.raises(ValueError, match="attribute 'bone' is not among"):
        compare_models(test, draws=20, attribute="bone")
    frame = comparison.metrics_frame(compared)
    assert set(frame["member"]) == set(test)
    assert {"metric", "value", "low", "high", "n"} <= set(frame)


def test_warnings_about_the_data_are_in_every_report() -> None:
    warning = "leak that was allowed: 2 patients"
    val, test = (
        {n: replace(t, meta={**t.meta, "notes": [warning]}) for n, t in tables.items()}
        for tables in (named_experts("val", 0), named_experts("test", 1))
    )
    fitted = fit_voters(val)
    evaluated, compared = evaluate_voters(fitted, test, draws=20), compare_models(test, draws=20)
    predictions = ensemble_predictions(fitted.ensembles["soft"], test)
    for page in (
        first_screen(fitted, evaluated, predictions, {}, []),
        comparison.comparison_sections(compared, test, {}),
    ):
        [answers] = [part.answers for part in page if isinstance(part, Overview)]
        assert warning in answers["What limits it?"]
    for results in (
        ensemble_results("ensemble", fitted, evaluated, test, "soft"),
        comparison.comparison_results("compare", compared, test),
    ):
        assert warning in results.meta["notes"]


@pytest.mark.parametrize("n", [4, 12])
def test_a_few_images_and_an_absent_class_give_a_report(tmp_path: Path, n: int) -> None:
    val, test = (
        {name: table.take(np.flatnonzero(table.labels != 2)[:n]) for name, table in tables.items()}
        for tables in (named_experts("val", 0), named_experts("test", 1))
    )
    fitted = fit_voters(val, VoterOptions("body_part"))
    evaluated = evaluate_voters(fitted, test, draws=50)
    for name, ensemble in fitted.ensembles.items():
        save(tmp_path / name, ensemble)
    results = ensemble_results("ensemble", fitted, evaluated, test, "soft")
    write_results(tmp_path / "results.json", results)
    ensemble = fitted.ensembles["soft"]
    on_val, on_test = (combine_members(ensemble, list(t.values())) for t in (val, test))
    page = [
        *ensemble_sections(fitted, evaluated, ensemble_predictions(ensemble, test)),
        referral_table(*evaluate_referral(on_val, on_test), on_test),
        *conformal_tables(on_val, on_test),
    ]
    write_report(tmp_path / "report.html", "An ensemble", page)
    assert evaluated.voter_metrics["soft"]["auroc"].value is None
    assert "stacked" in fitted.not_fitted
