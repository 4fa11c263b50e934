"""Figures draw every line in its panel and in its own colour."""

import io

import numpy as np
from PIL import Image

from kiwi.figures import COLOURS, Curve, plot_curves, save_figure


def draw(**options):
    first, second = Curve(x=[0, 1], y=[1, 2]), Curve(x=[0, 1], y=[3, 5], low=[2.5, 4.5], high=[3.5, 5.5])
    panels = {"left": {"one": first, "two": second}, "right": {"two": second}, "third": {"one": first}}
    return plot_curves(panels, x="step", y="score", limits=(0, 6), **options)


def test_lines_have_the_same_colour_in_every_panel_and_one_legend():
    figure = draw(columns=2)
    left, right, third, hidden = figure.axes
    assert [axis.get_title() for axis in (left, right, third)] == ["left", "right", "third"]
    assert not hidden.get_visible()
    assert [line.get_color() for line in left.lines] == list(COLOURS[:2])
    assert [line.get_color() for line in right.lines] == [COLOURS[1]]
    assert list(left.lines[1].get_ydata()) == [3, 5]
    assert len(left.collections) == 1
    assert left.get_ylim() == (0, 6)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]


def test_a_figure_is_drawn_without_a_display():
    data = io.BytesIO()
    draw(columns=3).savefig(data, format="png")
    pixels = np.asarray(Image.open(data).convert("RGB"))
    assert pixels.shape[1] > 2.5 * pixels.shape[0]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_a_saved_figure_does_not_contain_the_date(tmp_path):
    for name in ("a.png", "a.pdf", "a.svg", "b.PDF"):
        save_figure(draw(), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert content
        assert b"CreationDate" not in content
        assert b"<dc:date>" not in content
