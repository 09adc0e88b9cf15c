import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from evaluation.metrics.registry import summary_metrics
from evaluation.reports import html
from evaluation.stats.estimate import Estimate

REQUIRED = "CONSILIUM_BROWSER"
MEASURE = """() => [...document.querySelectorAll("table")].map(table => {
  const name = table.rows[2].cells[0];
  const lines = document.createRange();
  lines.selectNodeContents(name);
  return [table.offsetWidth, table.parentElement.clientWidth, lines.getClientRects().length];
})"""


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program and not os.environ.get(REQUIRED):
        pytest.skip(f"no browser: apt-get install chromium ({REQUIRED}=1 makes this a failure)")
    assert program, f"{REQUIRED} is set, and there is no browser: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


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
    assert all(table > box for table, box, _ in page.evaluate(MEASURE))
    overflow = "getComputedStyle(document.querySelector('table').parentElement).overflowX"
    assert page.evaluate(overflow) == "auto"
