"""Tables say the same in every format, whatever stands in their cells."""

import csv
import io

import pytest

from kiwi.tables import Table, escape_latex

TABLE = Table("Scores & more", ("arm", "PSNR, dB", "note"), [("a|b_c", 21.5, "50%\nso"), ("\\x", -3, "")], "n = 2")


def test_markdown_sets_numbers_to_the_right_and_keeps_cells_apart():
    assert TABLE.markdown() == (
        "**Scores & more**\n\n| arm | PSNR, dB | note |\n| --- | ---: | --- |\n"
        "| a\\|b_c | 21.5 | 50% so |\n| \\\\x | -3 |  |\n\nn = 2\n"
    )


def test_csv_is_read_back():
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [
        ["arm", "PSNR, dB", "note"],
        ["a|b_c", "21.5", "50%\nso"],
        ["\\x", "-3", ""],
    ]


def test_latex_is_booktabs_with_everything_escaped():
    text = TABLE.latex()
    assert r"\begin{tabular}{lrl}" in text
    assert r"\caption{Scores \& more. n = 2}" in text
    assert r"a\textbar{}b\_c & 21.5 & 50\% so \\" in text
    assert r"\textbackslash{}x & -3 &  \\" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1", "2.5"], True),
        (["1,000", "-3e-4"], True),
        (["20 dB", "3 %"], True),
        (["1", ""], True),
        (["1", "x"], False),
    ],
)
def test_columns_of_numbers_are_told_apart(cells, numeric):
    rule = Table("", ("c",), [(cell,) for cell in cells]).markdown().splitlines()[1]
    assert (rule == "| ---: |") is numeric


def test_a_table_without_rows_title_or_note_is_one():
    empty = Table("", ("a", "b"), [])
    assert empty.markdown() == "| a | b |\n| --- | --- |\n"
    assert empty.csv() == "a,b\n"
    assert "caption" not in empty.latex()


def test_letters_that_latex_has_not_do_not_stop_it():
    assert escape_latex("Müller \u2014 编辑 ±") == "Müller \u2014 ?? ±"


def test_markdown_holds_no_html_from_data():
    assert "<img" not in Table("<img src=x>", ("a",), [("<img src=x>",)], "<img>").markdown()
