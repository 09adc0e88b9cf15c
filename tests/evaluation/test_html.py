import re
from pathlib import Path

from evaluation.metrics.compute import compute_metrics
from evaluation.plots import curves
from evaluation.plots.style import subplots
from evaluation.reports import html
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
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
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
    page = html.section_html(Table(("a", "b", "c", "d"), [(ACCURACY, gain, alone, None)], digits=2))
    assert "0.97<small>0.95 to 0.98</small>" in page
    assert "+0.01<small>-0.02 to +0.04</small>" in page
    assert '<td class="number">0.50</td><td class="number">&ndash;</td>' in page


def test_columns_state_the_metrics_whose_lower_values_are_better() -> None:
    assert html.metric_columns(["accuracy", "nll"]) == ["", "Accuracy", "NLL (lower is better)"]


def test_sections_and_figures_are_rendered_in_a_notebook() -> None:
    page = show(Text("A < B"), subplots(2, 2)[0])._repr_html_()
    assert "<p>A &lt; B</p>" in page
    assert 'src="data:image/png;base64,' in page
