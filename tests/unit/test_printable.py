"""Text of any origin is shown as it is: it contains no control codes of a terminal, formulas, Markdown or LaTeX."""

import csv
import io
import logging
import re
import sys
import unicodedata
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kiwi import console
from kiwi.figures import Curve, escape_label, plot_curves
from kiwi.printable import escape_controls, escape_line
from kiwi.tables import Table, escape_csv, escape_latex, escape_markdown

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202e\u2066\rb\x00\u2028\ud800\x7f"
SPECIAL = "=+-@\t\r\n'\"[]|$_^\\&%{}*<.,1eA \x1b"
DANGEROUS = ("Cc", "Cf", "Cs", "Zl", "Zp")
SIGNED_NUMBER = r"[+-](\d[\d,]*\.?\d*|\.\d+)(e[+-]?\d+)?( ?[a-z%]{1,3})?|-|[+-](inf|nan)"
ANY_TEXT = st.text(st.characters(codec=None), max_size=30) | st.text(SPECIAL, max_size=12)


def dangerous(text):
    return [c for c in text if unicodedata.category(c) in DANGEROUS and c not in "\n\t\u200c\u200d"]


@given(ANY_TEXT)
@example(HOSTILE)
def test_escaped_text_has_no_control_characters_and_can_be_encoded(text):
    assert not dangerous(escape_controls(text))
    escape_controls(text).encode()
    assert "\n" not in escape_line(text)


@pytest.mark.parametrize(
    "text",
    [
        "编辑 é\u0301 ±\u00a0≥",
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "👩\u200d🎨",
        "two\nlines\tand a tab",
        "",
    ],
)
def test_text_of_every_language_is_unchanged(text):
    assert escape_controls(text) == text


def write_log(text):
    logging.getLogger("library").warning("weights %s", text)


def write_warning(text):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        sys.stderr.write(warnings.formatwarning(text, UserWarning, "f.py", 1, ""))


def write_traceback(text):
    sys.excepthook(ValueError, ValueError(text), None)


def write_progress(text):
    list(console.progress([1], text))


def write_table(text):
    console.table(Table(text, (text,), [(text,)], text))


@pytest.fixture
def logging_is_restored(monkeypatch):
    root, kiwi, factory = logging.getLogger(), logging.getLogger("kiwi"), logging.getLogRecordFactory()
    before = root.handlers[:], root.level, kiwi.level
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    yield
    logging.setLogRecordFactory(factory)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    kiwi.setLevel(before[2])


@pytest.mark.usefixtures("logging_is_restored")
@pytest.mark.parametrize(
    "write",
    [
        console.print, console.note, console.error, write_log, write_warning, write_traceback, write_progress,
        write_table,
    ],
)  # fmt: skip
def test_control_characters_do_not_reach_the_terminal(write, capsys):
    console.setup_logging()
    write(HOSTILE)
    output = "".join(capsys.readouterr())
    assert not dangerous(output)
    assert r"\x1b" in output.replace("\n", "").replace(" ", "")


@pytest.mark.usefixtures("logging_is_restored")
def test_loggers_of_other_packages_with_handlers_of_their_own_are_escaped_too(capsys):
    console.setup_logging()
    logger, handler = logging.getLogger("library.own"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.propagate = False
    logger.warning(HOSTILE)
    logger.removeHandler(handler)
    assert not dangerous(capsys.readouterr().err)


def test_an_error_is_one_line_whatever_its_names_contain(capsys):
    console.error("the file a\nerror: b does not exist")
    assert capsys.readouterr().err.count("\n") == 1


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=4))
@example([("=1+1", "-0.5"), ("@x", "\tx"), (HOSTILE, "-1+A1")])
def test_csv_round_trips_and_no_text_is_a_formula(rows):
    text = Table("", ("a", "b"), rows).to_csv()
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read == [["a", "b"], *([escape_csv(cell) for cell in row] for row in rows)]
    for cell in (cell for row in read for cell in row):
        is_number = re.fullmatch(SIGNED_NUMBER, cell, re.I | re.A)
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) or is_number


@given(ANY_TEXT, ANY_TEXT)
def test_different_cells_without_control_characters_stay_different_in_csv(first, second):
    if not dangerous(first + second):
        assert (escape_csv(first) == escape_csv(second)) is (first == second)


@pytest.mark.parametrize("number", ["-0.5", "+3", "-1e-4", "-1,000.5", "-3 dB", "-12%", "-inf", "-"])
def test_numbers_stay_numbers_in_csv(number):
    assert escape_csv(number) == number


@pytest.mark.parametrize(
    "formula", ["=1", "+A1", "-1+A1", "-cmd|x", "@SUM(A1)", "\t=1", "\r=1", "-1 A1B2", "\uff1d1", "'=1"]
)
def test_formulas_become_text_in_csv(formula):
    assert escape_csv(formula).startswith("'")


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
@example("a|b", "\\", "[x](http://a.b)")
@example("\\|", "<img>", "a\r\nb")
def test_a_markdown_table_keeps_its_rows_and_cells(first, second, third):
    lines = Table("", ("a", "b"), [(first, second), (third, "")]).to_markdown().rstrip("\n").split("\n")
    assert len(lines) == 4
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3  # bars that are not escaped
    assert not re.search(r"<|\]\(", escape_markdown(first + third))


@given(ANY_TEXT)
@example("[2pt]")
@example("*")
def test_latex_has_no_special_characters_but_escaped_ones(text):
    escaped = escape_latex(text)
    rest = re.sub(r"\\(text\w+\{\}|[&%$#_{}])|\{\[\}|\{\*\}", "", escaped)
    assert not re.search(r"[\\&%$#_{}~^<>|\[*]", rest)
    assert not dangerous(escaped)
    assert "\n" not in escaped


def test_no_latex_row_begins_with_what_would_be_an_argument_of_the_row_end_before_it():
    rows = [("[1cm]", "*"), ("*", "[x]")]
    lines = Table("", ("[a]", "b"), rows).to_latex().splitlines()
    ends = [n for n, line in enumerate(lines) if line.endswith((r"\\", "rule"))]
    assert not any(lines[n + 1].lstrip().startswith(("[", "*")) for n in ends)


@pytest.mark.parametrize("name", ["$x^2$", "_hidden", "a$b_c^d$", r"\frac", "$", r"\$a$b$", "$\\undefined$", HOSTILE])
def test_names_in_figures_are_shown_as_they_are(name):
    from matplotlib.cbook import is_math_text

    line = Curve(x=[0, 1], y=[1, 2])
    figure = plot_curves({name: {name: line}}, x="step", y="score", limits=None)
    figure.savefig(io.BytesIO(), format="png")
    (entry,) = figure.legends[0].get_texts()
    for label in (entry.get_text(), figure.axes[0].get_title()):
        assert label == escape_label(name)
        assert not is_math_text(label)
        assert label.replace(r"\$", "$").strip() == escape_line(name)
