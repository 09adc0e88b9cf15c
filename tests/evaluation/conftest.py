"""Plots are drawn in all tests of reports."""

import pytest


@pytest.fixture(autouse=True)
def _drawn_plots(drawn_plots: None) -> None:
    """Draws the plots of reports."""
