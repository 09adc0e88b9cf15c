import numpy as np
import pytest

from evaluation.plots import maps
from evaluation.reports.html import render_png


def test_a_zero_map_changes_nothing_and_a_peak_changes_one_pixel():
    image = np.full((20, 30), 200, np.uint8)
    saliency_map = np.zeros((20, 30), np.float32)
    np.testing.assert_array_equal(maps.overlay(image, saliency_map), maps.to_rgb(image))
    saliency_map[4, 7] = 1
    blended = maps.overlay(image, saliency_map).astype(int)
    change = np.abs(blended - 200).sum(axis=2)
    assert change[4, 7] > 100
    assert (change > 0).sum() == 1


def test_colors_get_monotonically_brighter():
    brightness = maps.colored_map(np.linspace(0, 1, 50)[None]).astype(float) @ [
        0.2126,
        0.7152,
        0.0722,
    ]
    assert (np.diff(brightness[0]) >= 0).all()
    assert brightness[0, 0] < 5
    assert 120 < brightness[0, -1] < 200  # darker than bone


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"the image is \(4, 5\), the map \(5, 4\)"):
        maps.overlay(np.zeros((4, 5), np.uint8), np.zeros((5, 4)))


def test_cut_text_ends_with_an_ellipsis():
    panel = maps.Panel("name " * 30, "word " * 90)
    fig = maps.panel_grid([np.zeros((9, 9), np.uint8)], [panel])
    texts = fig.axes[0].get_title("left"), fig.axes[0].get_xlabel()
    assert all(text.endswith("…") for text in texts)


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (90, 90, 3)])
def test_no_text_of_a_panel_is_outside_the_figure(shape):
    image = np.zeros(shape, np.uint8)
    long_name = "a member with a remarkably long name of its own, tf_efficientnetv2_s"
    panels = [maps.Panel("Original", "p1.png")]
    saliency_map = np.eye(*shape[:2])
    panels += [
        maps.Panel(
            long_name, f"comminuted fracture 0.99\nprobability 0.5\n{long_name}", saliency_map
        )
    ] * 5
    counts = "members: comminuted fracture 2, no fracture 1, simple fracture 1"
    panels += [
        maps.Panel(
            "c", f"comminuted fracture 0.614\nmap: comminuted fracture\n{counts}", saliency_map
        )
    ]
    fig = maps.panel_grid([image] * len(panels), panels)
    caption = " ".join(fig.axes[6].get_xlabel().split())
    assert caption.endswith(counts)  # no line is cut
    assert render_png(fig).startswith(b"\x89PNG")
    page = fig.bbox
    renderer = fig.canvas.get_renderer()
    boxes = [a.xaxis.label.get_window_extent(renderer) for a in fig.axes if a.axison]
    boxes += [a.title.get_window_extent(renderer) for a in fig.axes]
    boxes += [a._left_title.get_window_extent(renderer) for a in fig.axes]
    for box in boxes:
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
