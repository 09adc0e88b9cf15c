import re
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from evaluation.metrics import registry
from evaluation.metrics.compute import compute_metrics
from evaluation.plots import curves
from evaluation.plots.style import subplots
from evaluation.reports import html
from evaluation.reports.clinical import RATES
from evaluation.reports.html import SignedEstimate, Table, Text, show
from evaluation.stats.estimate import Estimate
from tests.evaluation.tables import make_table

ACCURACY = Estimate(0.97, 0.955, 0.98, "Wilson", 1200, 300)


def test_a_report_is_one_file_without_network_references(tmp_path: Path) -> None:
    table = make_table()
    metrics = compute_metrics(table, draws=20)
    sections = [
        html.accuracy_sentence("The ensemble", metrics["accuracy"]),
        html.Text("Less than <b>all</b>."),
        html.metrics_table(metrics),
        html.Gates([html.Gate("accuracy", ">= 0.9", "0.8", False)]),
        html.Plot(curves.confusion_plot(table), "counts and percentages"),
        html.Thumbnails([b"png"], ["one"]),
        html.Details({"seed": 0}),
    ]
    html.write_report(tmp_path / "report.html", "A title & more", sections)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "http" not in page
    assert "A title &amp; more" in page
    assert "&lt;b&gt;all&lt;/b&gt;" in page
    assert "<th>required</th><th>measured</th>" in page
    assert '<td class="fail">fail</td>' in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_opening_sentence_has_interval_and_sample_size() -> None:
    assert html.accuracy_sentence("The ensemble", ACCURACY).body == (
        "The ensemble reaches accuracy 0.9700 (95 % interval 0.9550 to 0.9800) "
        "on 1,200 images of 300 patients."
    )
    missing = Estimate(None, None, None, "none", 0, 0, "no label")
    text = html.accuracy_sentence("It", missing).body
    assert text == "It: accuracy was not measured (no label)."


def test_estimates_have_their_interval_in_small_print_and_differences_a_sign() -> None:
    gain = SignedEstimate(Estimate(0.01, -0.02, 0.04, "paired", 9, 9))
    alone = Estimate(0.5, None, None, "none", 9, 9, "too few patients")
    page = html.section_html(Table(("a", "b", "c", "d"), [(ACCURACY, gain, alone, None)]))
    assert "0.9700<small>0.9550 to 0.9800</small>" in page
    assert "+0.01<small>-0.02 to +0.04</small>" in page
    assert '0.50<small>no interval</small></td><td class="number">&ndash;</td>' in page
    assert "Without interval or value: too few patients." in page


def test_a_value_without_interval_has_the_reason_in_sentences() -> None:
    alone = Estimate(0.5, None, None, "none", 9, 9, "too few patients")
    assert html.format_estimate(alone) == "0.50 (no interval: too few patients)"
    assert html.accuracy_sentence("It", alone).body == (
        "It reaches accuracy 0.50 (no interval: too few patients) on 9 images of 9 patients."
    )


@pytest.mark.parametrize(
    ("n", "text"), [(9, "0.91"), (100, "0.91"), (197, "0.914"), (1000, "0.914"), (1001, "0.9137")]
)
def test_the_number_of_decimals_fits_the_number_of_images(n: int, text: str) -> None:
    assert html.format_estimate(Estimate(0.9137, None, None, "none", n, n)) == text


@pytest.mark.parametrize("value", [-0.00001, 0.0, 0.00001])
def test_a_number_that_is_rounded_to_zero_has_no_sign(value: float) -> None:
    difference = Estimate(value, -0.2, 0.2, "paired", 5000, 50)
    shown = html.format_estimate(difference, sign="+")
    assert shown == "0.0000 (-0.2000 to +0.2000)"
    assert '<td class="number">0.00</td>' in html.section_html(Table(("",), [(value,)], digits=2))


def test_one_image_of_one_patient_is_in_the_singular() -> None:
    assert (
        html.format_sample_size(Estimate(1.0, 0.1, 1.0, "Wilson", 1, 1)) == "1 image of 1 patient"
    )
    study = Estimate(1.0, 0.1, 1.0, "Wilson", 1, 1)
    assert html.format_sample_size(study, "studies") == "1 study of 1 patient"
    assert html.format_sample_size(study, "patients") == "1 patient"
    assert html.format_count(1200, "pairs") == "1,200 pairs"


def test_every_report_says_that_it_is_for_research_only(tmp_path: Path) -> None:
    html.write_report(tmp_path / "report.html", "Anything", [Text("A result.", lead=True)])
    page = (tmp_path / "report.html").read_text()
    assert page.index("Research use only. Not a medical device.") < page.index("A result.")


def test_details_show_values_in_plain_words() -> None:
    details = html.Details({"tta": [], "folds_used": [1, 2], "member": {"size": 3}, "name": "a_b"})
    cells = re.findall(r"<td>(.*?)</td>", html.section_html(details))
    assert cells == ["test-time augmentation", "none", "folds used", "1, 2", "member", "size: 3",
                     "name", "a_b"]  # fmt: skip


FOLDED = re.compile(r"<details><summary><h2>(.*?)</h2></summary>(.*?)</details>", re.DOTALL)


def write(tmp_path: Path, *sections: html.Section) -> str:
    html.write_report(tmp_path / "report.html", "An experiment", sections)
    return (tmp_path / "report.html").read_text()


def test_everything_below_the_first_screen_folds_out_section_by_section(tmp_path: Path) -> None:
    table = Table(("a",), [("x",)])
    sections = [replace(table, heading=heading) for heading in ("Gates", "Members & more", "Cost")]
    sections.insert(2, Text("About the members."))  # without a heading: of the section above
    page = write(tmp_path, Text("The summary.", lead=True), html.Overview({"Why?": ["So."]}),
                 *sections)  # fmt: skip
    first_screen, *_ = page.partition("<details>")
    assert "The summary." in first_screen
    assert "<dt>Why?</dt><dd>So.</dd>" in first_screen
    folded = dict(FOLDED.findall(page))
    assert list(folded) == ["Gates", "Members &amp; more", "Cost"]
    assert [name for name, of in folded.items() if "About" in of] == ["Members &amp; more"]
    assert all("<td>x</td>" in content for content in folded.values())


def test_a_page_without_a_first_screen_does_not_fold(tmp_path: Path) -> None:
    page = write(tmp_path, Table(("a",), [("x",)], "Intended use"))
    assert "<details" not in page
    assert "<h2>Intended use</h2>" in page


def glossary(page: str) -> dict[str, str]:
    rows = dict(FOLDED.findall(page)).get(html.GLOSSARY, "")
    return dict(re.findall("<tr><td>(.*?)</td><td>(.*?)</td></tr>", rows))


@pytest.mark.parametrize(
    "names", [["accuracy", "kappa"], ["average_precision"], ["net_benefit_over_all/a", "recall/a"]]
)
def test_the_glossary_has_exactly_the_metrics_of_the_report(
    tmp_path: Path, names: list[str]
) -> None:
    metrics = dict.fromkeys(names, ACCURACY)
    details = html.Details({"precision": "32-true"})  # of numbers, not the metric
    page = write(tmp_path, Text("A summary."), html.metrics_table(metrics, "Values"), details)
    specs = [registry.metric_spec(name) for name in names]
    assert list(glossary(page).values()) == [escape(spec.meaning) for spec in specs]
    assert all(spec.meaning.endswith(".") for spec in registry.METRICS.values())


def test_the_glossary_knows_the_names_of_clinical_tables(tmp_path: Path) -> None:
    page = write(tmp_path, Text("A summary."), Table(list(RATES.values()), [], "Decisions"))
    expected = {"recall", "specificity", "precision", "npv", "number_needed_to_refer", "accuracy"}
    meanings = {escape(registry.METRICS[name].meaning) for name in expected}
    assert set(glossary(page).values()) == meanings
    assert len(glossary(write(tmp_path, Text("No metric."), Text("", "Nothing")))) == 0


def test_columns_state_the_metrics_whose_lower_values_are_better() -> None:
    assert html.metric_columns(["accuracy", "nll"]) == ["", "Accuracy", "NLL (lower is better)"]


def test_sections_and_figures_are_rendered_in_a_notebook() -> None:
    page = show(Text("A < B"), subplots(2, 2)[0])._repr_html_()
    assert "<p>A &lt; B</p>" in page
    assert 'src="data:image/png;base64,' in page
