import numpy as np
import pytest

from evaluation.plots import maps
from evaluation.reports.html import render_png


def test_a_bare_map_changes_nothing_and_a_peak_is_seen():
    picture = np.full((20, 30), 200, np.uint8)
    warm = np.zeros((20, 30), np.float32)
    np.testing.assert_array_equal(maps.overlay(picture, warm), maps.to_rgb(picture))
    warm[4, 7] = 1
    seen = maps.overlay(picture, warm).astype(int)
    moved = np.abs(seen - 200).sum(axis=2)
    assert moved[4, 7] > 100
    assert (moved > 0).sum() == 1


def test_colors_grow_lighter_so_that_no_color_sense_is_needed():
    light = maps.colored_map(np.linspace(0, 1, 50)[None]).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light[0]) >= 0).all()
    assert light[0, 0] < 5
    assert 120 < light[0, -1] < 200  # bright, and not as bright as bone


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"the picture is \(4, 5\), the map \(5, 4\)"):
        maps.overlay(np.zeros((4, 5), np.uint8), np.zeros((5, 4)))


def test_what_is_cut_says_so():
    figure = maps.image_panels(np.zeros((9, 9), np.uint8), [maps.Panel("name " * 30, "word " * 90)])
    texts = figure.axes[0].get_title("left"), figure.axes[0].get_xlabel()
    assert all(text.endswith("…") for text in texts)


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (90, 90, 3)])
def test_no_text_of_a_panel_leaves_the_page(shape):
    picture = np.zeros(shape, np.uint8)
    long = "a member with a remarkably long name of its own, tf_efficientnetv2_s"
    shown = [maps.Panel("Original", "p1.png")]
    warm = np.eye(*shape[:2])
    shown += [maps.Panel(long, f"comminuted fracture 0.99\nvotes 0.5\n{long}", warm)] * 5
    poll = "votes: comminuted fracture 2, no fracture 1, simple fracture 1"
    shown += [maps.Panel("c", f"comminuted fracture 0.614\nmap: comminuted fracture\n{poll}", warm)]
    figure = maps.image_panels(picture, shown)
    said = " ".join(figure.axes[6].get_xlabel().split())
    assert said.endswith(poll)  # and none is cut
    assert render_png(figure).startswith(b"\x89PNG")
    page = figure.bbox
    renderer = figure.canvas.get_renderer()
    boxes = [a.xaxis.label.get_window_extent(renderer) for a in figure.axes if a.axison]
    boxes += [a.title.get_window_extent(renderer) for a in figure.axes]
    boxes += [a._left_title.get_window_extent(renderer) for a in figure.axes]
    for box in boxes:
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
