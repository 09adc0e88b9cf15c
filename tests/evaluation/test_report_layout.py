from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.metrics.registry import summary_metrics
from evaluation.plots import curves
from evaluation.reports import html
from evaluation.stats.estimate import Estimate
from tests.evaluation.tables import make_table

MEASURE = """() => [...document.querySelectorAll("table")].map(table => {
  const name = table.rows[2].cells[0];
  const lines = document.createRange();
  lines.selectNodeContents(name);
  return [table.offsetWidth, table.parentElement.clientWidth, lines.getClientRects().length];
})"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report with the tables of an experiment and of its voters."""
    metrics = {name: Estimate(0.97, 0.955, 0.98, "BCa", 1200, 300) for name in summary_metrics()}
    members = {"ensemble": metrics, "efficientnetv2_m-seed0": metrics}
    voters = {"voter: Mean probability": metrics, "member: convnextv2 (best on val)": metrics}
    sections = [
        html.models_table(members, "Members", count="n"),
        html.models_table(voters, "Voters and members"),
    ]
    html.write_report(tmp_path / "report.html", "An experiment", sections)
    return tmp_path / "report.html"


def test_tables_fit_a_page_of_1200_pixels_and_their_first_column_one_line(browser, report):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(report.as_uri())
    for table, box, lines in page.evaluate(MEASURE):
        assert table <= box
        assert lines == 1


def test_tables_scroll_inside_their_box_on_a_phone(browser, report):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert all(table > box for table, box, _ in page.evaluate(MEASURE)[:2])  # not the glossary
    overflow = "getComputedStyle(document.querySelector('table').parentElement).overflowX"
    assert page.evaluate(overflow) == "auto"


@pytest.fixture
def long_report(tmp_path: Path) -> Path:
    """A report with a summary, four tables and a plot of the usual width, all folded."""
    table = html.Table(("name", "value"), [("a", 1.0)])
    sections = [html.Text("The summary.", lead=True)]
    sections += [replace(table, heading=name) for name in ("Gates", "Members", "Audit", "Cost")]
    sections += [
        html.Plot(curves.roc_plot(make_table()), "A plot.", "ROC"),
    ]
    html.write_report(tmp_path / "report.html", "An experiment", sections)
    return tmp_path / "report.html"


def test_labels_of_plots_are_legible_on_a_phone(browser, long_report):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{long_report.as_uri()}#section4")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    shown = page.evaluate("document.querySelector('figure img').getBoundingClientRect().width")
    inches = curves.roc_plot(make_table()).get_figwidth()
    assert 8 / 72 * shown / inches >= 9  # pixels of a label of 8 points


def test_folded_sections_are_closed_on_screen_and_open_in_print(browser, long_report):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(long_report.as_uri())
    tables = page.locator("details table").all()
    assert len(tables) == 4
    assert not any(table.is_visible() for table in tables)
    page.emulate_media(media="print")
    assert all(table.bounding_box()["height"] > 10 for table in tables)


def test_a_click_on_a_heading_or_a_link_to_a_section_opens_it_alone(browser, long_report):
    page = browser.new_page(viewport={"width": 1200, "height": 900}, java_script_enabled=False)
    page.goto(f"{long_report.as_uri()}#section1")
    page.get_by_role("heading", name="Audit").click()
    is_open = [part.get_attribute("open") is not None for part in page.locator("details").all()]
    assert is_open == [False, True, True, False, False]
    assert page.get_by_role("heading", name="Members").bounding_box()["y"] >= 0


def test_a_report_follows_the_color_scheme_but_not_in_print(browser, long_report):
    page = browser.new_page()
    page.goto(long_report.as_uri())
    background = "getComputedStyle(document.body).backgroundColor"
    colors = {}
    for media in ("screen", "print"):
        for scheme in ("light", "dark"):
            page.emulate_media(media=media, color_scheme=scheme)
            colors[media, scheme] = page.evaluate(background)
    white = "rgb(255, 255, 255)"
    is_white = {key: color == white for key, color in colors.items()}
    assert [key for key, white in is_white.items() if not white] == [("screen", "dark")]
