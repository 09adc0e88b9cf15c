from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from evaluation.ensemble import ensemble_predictions, evaluate_voters, fit_voters
from evaluation.metrics.calibration import reliability_bins
from evaluation.metrics.compute import confusion_matrix
from evaluation.plots import curves, ensemble, style
from evaluation.plots.clinical import (
    calibration_plot,
    decision_curve_plot,
    net_benefit_difference_plot,
)
from evaluation.predictions import PredictionTable
from evaluation.reports import comparison, html
from evaluation.reports.ensemble import ensemble_sections
from evaluation.reports.html import render_png
from evaluation.stats.auc import auc
from evaluation.stats.estimate import Estimate, wilson_interval
from tests.evaluation.tables import make_table, named_experts


def _lines(ax: Axes) -> dict[str, list[list[float]]]:
    """Points of the labeled lines."""
    labeled = {str(line.get_label()): line.get_xydata() for line in ax.lines}
    return {name: points.tolist() for name, points in labeled.items() if not name.startswith("_")}


def test_a_confusion_plot_has_the_counts() -> None:
    fig = curves.confusion_plot(make_table())
    texts = [int(t.get_text()) for t in fig.axes[0].texts]
    assert texts == confusion_matrix(make_table()).ravel().tolist()
    assert render_png(fig).startswith(b"\x89PNG")


def _plots() -> dict[str, Figure]:
    """Plots with fixed margins, of values with long tick labels as well."""
    tables = {name: make_table(seed=seed) for seed, name in enumerate("ab")}
    table, epochs = tables["a"], np.arange(4)
    outcomes = table.class_names
    history = pd.DataFrame({
        "epoch": epochs, "train/loss": 0.5 + 1e-5 * epochs, "val/loss": 1e5 * (epochs + 1),
        "train/accuracy": 1e-6 * epochs, "val/auroc": 0.98764 + 1e-4 * epochs,
    })  # fmt: skip
    return {
        "learning curves": curves.learning_curves(history),
        "ROC": curves.roc_comparison(tables),
        "precision and recall": curves.precision_recall_plot(tables),
        "reliability": curves.reliability_plot(tables),
        "decision curves": decision_curve_plot(tables, outcomes),
        "differences": net_benefit_difference_plot(tables, outcomes),
        "calibration": calibration_plot(table, outcomes),
    }


def test_no_text_of_a_plot_is_cut_or_covers_another_panel() -> None:
    for name, fig in _plots().items():
        assert fig.get_layout_engine() is None
        render_png(fig)
        boxes = [box for ax in fig.axes if ax.get_visible() and (box := ax.get_tightbbox())]
        for at, box in enumerate(boxes):
            assert box.min.min() >= 0, (name, at, box)
            assert (box.max <= fig.bbox.max).all(), (name, at, box)
            assert not any(box.overlaps(other) for other in boxes[:at]), (name, at)


@pytest.mark.parametrize(("classes", "plotted"), [(2, [1]), (3, [0, 1, 2])])
def test_a_roc_plot_has_one_curve_per_class_with_its_auroc(
    classes: int, plotted: list[int]
) -> None:
    table = make_table(2000, classes)
    lines = _lines(curves.roc_plot(table).axes[0])
    areas = [roc_auc_score(table.labels == k, table.probabilities[:, k]) for k in plotted]
    names = [f"{table.class_names[k]}  {a:.4f}" for k, a in zip(plotted, areas, strict=True)]
    assert list(lines) == names
    assert all((points[0], points[-1]) == ([0, 0], [1, 1]) for points in lines.values())


def test_compared_models_have_their_names_and_scikit_learns_macro_auroc() -> None:
    tables = {"a": make_table(2000), "b": make_table(2000, seed=1)}
    areas = [
        roc_auc_score(t.labels, t.probabilities, multi_class="ovr", average="macro")
        for t in tables.values()
    ]
    lines = _lines(curves.roc_comparison(tables).axes[0])
    assert list(lines) == [f"a  {areas[0]:.4f}", f"b  {areas[1]:.4f}"]
    axes = curves.reliability_plot(tables).axes
    assert [ax.get_title(loc="left").split()[0] for ax in axes] == ["a", "b"]


@pytest.mark.parametrize(("gain", "panels"), [(0.0, 1), (4.0, 2)])
def test_the_upper_left_corner_is_shown_only_if_a_curve_passes_through_it(
    gain: float, panels: int
) -> None:
    table = make_table(400, gain=gain)
    for fig in (curves.roc_plot(table), curves.roc_comparison({"a": table})):
        assert len(fig.axes) == panels
    mixed = curves.roc_comparison({"weak": make_table(400, gain=0.0), "a": table})
    assert len(mixed.axes) == panels


@pytest.mark.parametrize(("n", "bins"), [(12, 5), (80, 8), (400, 15)])
def test_a_reliability_plot_of_few_images_has_fewer_bins_than_the_ece(n: int, bins: int) -> None:
    table = make_table(n)
    assert len(_error_bars(table)) == bins
    assert curves.reliability_caption([table]).startswith(f"{bins} bins of equally many images")
    ece = reliability_bins(table.probabilities, table.labels, 15).ece
    title = curves.reliability_plot({"": table}).axes[0].get_title(loc="left")
    assert title == f"ECE {style.format_rounded(ece, n)}"


def test_learning_curves_skip_missing_values() -> None:
    history = pd.DataFrame({"epoch": [0, 1], "train/x": [2, 1], "val/x": [2.0, np.nan]})
    [ax] = curves.learning_curves(history).axes
    assert _lines(ax) == {"train": [[1, 2], [2, 1]], "val": [[1, 2]]}


def test_learning_curves_compare_the_trained_loss_only_with_itself() -> None:
    """A focal loss of train and the NLL of val have different scales."""
    history = pd.DataFrame({"epoch": [0, 1], "train/loss": [0.2, 0.1], "val/loss": [1.0, 0.9],
                            "val/training_loss": [0.3, 0.2]})  # fmt: skip
    axes = {ax.get_title(loc="left"): _lines(ax) for ax in curves.learning_curves(history).axes
            if ax.get_visible()}  # fmt: skip
    assert axes == {
        "Loss as trained": {"train": [[1, 0.2], [2, 0.1]], "val": [[1, 0.3], [2, 0.2]]},
        "NLL": {"val": [[1, 1.0], [2, 0.9]]},
    }


def _error_bars(table: PredictionTable) -> list[list[float]]:
    """Lower and upper end of each error bar of a reliability plot."""
    ax = curves.reliability_plot({"": table}).axes[0]
    (bars,) = (c for c in ax.collections if isinstance(c, LineCollection))
    return [segment[:, 1].tolist() for segment in bars.get_segments()]


def test_error_bars_of_bins_without_errors_are_wilson_intervals() -> None:
    table = make_table(400, gain=0.0)
    correct = replace(table, logits=table.logits + 20 * np.eye(3)[table.labels])
    bins = reliability_bins(correct.probabilities, correct.labels)
    assert (bins.accuracy == 1).all()
    assert _error_bars(correct) == [pytest.approx(wilson_interval(n, n)) for n in bins.count]


def test_error_bars_are_over_patients_and_not_images() -> None:
    single = make_table(400)
    index, names = np.repeat(np.arange(400), 4), [f"image{i}" for i in range(1600)]
    rows = single.rows.iloc[index].reset_index(drop=True).assign(id=names)
    four_per_patient = replace(single, rows=rows, logits=single.logits[index])
    own_patients = replace(four_per_patient, rows=rows.assign(patient=names))
    widths = [
        np.diff(_error_bars(table)).ravel() for table in (single, four_per_patient, own_patients)
    ]
    np.testing.assert_allclose(widths[1], widths[0], rtol=0.25)  # BCa and Wilson
    assert np.median(widths[1] / widths[2]) > 1.5


def test_a_recall_of_zero_is_plotted_and_a_missing_one_is_not() -> None:
    def member(*recalls: float | None) -> dict[str, Estimate]:
        return {f"recall/{name}": Estimate(value, None, None, "none", 9, 9)
                for name, value in zip("abc", recalls, strict=True)}  # fmt: skip

    metrics = {"one": member(0.0, 0.5, None), "two": member(0.25, 0.5, None)}
    first, second, circles = ensemble.recall_plot(metrics, list("abc")).axes[0].lines
    np.testing.assert_array_equal(first.get_ydata(), [0.0, 0.5, np.nan])
    np.testing.assert_array_equal(second.get_ydata(), [0.25, 0.5, np.nan])
    assert sorted(circles.get_ydata()) == [0.25, 0.5, 0.5]  # of equal members both


def test_equal_predictions_give_the_same_png() -> None:
    first, second = (render_png(curves.confusion_plot(make_table())) for _ in range(2))
    assert first == second


def test_the_area_under_the_roc_curve_is_the_auc() -> None:
    table = make_table(200, 2)
    positive = table.labels == 1
    fpr, tpr = curves.roc_curve(table.probabilities[:, 1], positive)
    area = np.trapezoid(tpr, fpr)
    assert area == pytest.approx(auc(table.probabilities[:, 1], positive))


def _colors(page: list[html.Section], names: list[str]) -> dict[str, set[str]]:
    """Colors of lines and points with the name of a model, in all plots of a page."""
    colors: dict[str, set[str]] = {name: set() for name in names}
    lines = [line for part in page if isinstance(part, html.Plot)
             for ax in part.image.axes for line in ax.lines]  # fmt: skip
    for line in lines:
        title = line.axes.get_title(loc="left")
        label = title if "   ECE" in title and line.get_marker() == "o" else line.get_label()
        if (name := str(label).partition("  ")[0]) in colors:
            colors[name].add(line.get_color())
    return colors


def test_a_member_has_one_color_in_all_plots_of_a_report_and_the_ensemble_the_first() -> None:
    val, test = named_experts("val", 0, 300), named_experts("test", 1, 300)
    fitted = fit_voters(val)
    evaluated = evaluate_voters(fitted, test, draws=20)
    predictions = ensemble_predictions(fitted.ensembles["soft"], test)
    own = "ensemble (Mean probability)"
    expected = {own: {style.COLORS[0]}} | {
        name: {color} for name, color in zip(test, style.COLORS[1:], strict=False)
    }
    page = ensemble_sections(fitted, evaluated, predictions)
    assert _colors(page, [own, *test]) == expected
    assert _colors(page, ["uncalibrated", "calibrated"]) == {
        "uncalibrated": {style.COLORS[0]}, "calibrated": {style.COLORS[0]}}  # fmt: skip
    compared = comparison.compare_models(test, draws=20)
    history = pd.DataFrame({"epoch": [0], "train/nll": [0.2], "val/nll": [0.3]})
    page = comparison.comparison_sections(compared, test, dict.fromkeys(test, history))
    assert _colors(page, list(test)) == {name: expected[name] for name in test}
    for name in test:  # its own plots
        [plot] = [part for part in page if part.heading == f"Learning curves: {name}"]
        assert {line.get_color() for line in plot.image.axes[0].lines} == expected[name]


def test_a_member_keeps_its_color_where_others_are_left_out() -> None:
    tables = named_experts("test", 1, 300)
    *_, last = tables
    with style.member_colors(tables):
        alone = curves.roc_comparison({last: tables[last]}).axes[0]
        with style.member_colors([last]):  # of a part of the report
            again = curves.roc_comparison({last: tables[last]}).axes[0]
        calibrated = calibration_plot(tables[last], ["none"], last).axes[0]
    for ax in (alone, again, calibrated):
        assert style.COLORS[len(tables)] in [line.get_color() for line in ax.lines]
    assert style.model_index(last) == 0  # outside of a report


def test_a_difference_of_two_members_has_the_colors_of_both() -> None:
    tables = named_experts("test", 1, 300)
    a, b, *_ = tables
    ax = net_benefit_difference_plot({a: tables[a], b: tables[b]}, ["none"]).axes[0]
    [line] = [line for line in ax.lines if line.get_label() == f"{a} minus {b}"]
    assert [line.get_color(), line.get_gapcolor()] == list(style.COLORS[:2])
