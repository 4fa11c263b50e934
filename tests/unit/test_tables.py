"""Tables have the same cells in every format, and special characters are escaped."""

import csv
import io

import pytest

from kiwi.tables import Table, escape_latex

TABLE = Table("Scores & more", ("arm", "PSNR, dB", "note"), [("a|b_c", 21.5, "50%\nso"), ("\\x", -3, "")], "n = 2")


def test_markdown_aligns_numbers_to_the_right_and_escapes_separators():
    assert TABLE.to_markdown() == (
        "**Scores & more**\n\n| arm | PSNR, dB | note |\n| --- | ---: | --- |\n"
        "| a\\|b_c | 21.5 | 50% so |\n| \\\\x | -3 |  |\n\nn = 2\n"
    )


def test_csv_round_trips():
    assert list(csv.reader(io.StringIO(TABLE.to_csv()))) == [
        ["arm", "PSNR, dB", "note"],
        ["a|b_c", "21.5", "50%\nso"],
        ["\\x", "-3", ""],
    ]


def test_latex_is_booktabs_with_everything_escaped():
    text = TABLE.to_latex()
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
def test_columns_of_numbers_are_recognised(cells, numeric):
    rule = Table("", ("c",), [(cell,) for cell in cells]).to_markdown().splitlines()[1]
    assert (rule == "| ---: |") is numeric


def test_a_table_may_lack_rows_title_and_note():
    empty = Table("", ("a", "b"), [])
    assert empty.to_markdown() == "| a | b |\n| --- | --- |\n"
    assert empty.to_csv() == "a,b\n"
    assert "caption" not in empty.to_latex()


def test_characters_that_the_latex_fonts_lack_become_question_marks():
    assert escape_latex("Müller \u2014 编辑 ±") == "Müller \u2014 ?? ±"


def test_html_in_cells_is_escaped_in_markdown():
    assert "<img" not in Table("<img src=x>", ("a",), [("<img src=x>",)], "<img>").to_markdown()
