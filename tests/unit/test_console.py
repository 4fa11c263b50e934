"""kiwi.console: results go to stdout, everything else to stderr, and text is printed literally."""

import logging

import pytest

from kiwi import console
from kiwi.tables import Table

LITERAL = "[bold]not bold[/bold] [a.b=1] back\\"


@pytest.fixture
def logs():
    """Restore the root logger."""
    root, kiwi = logging.getLogger(), logging.getLogger("kiwi")
    before = root.handlers[:], root.level, kiwi.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    kiwi.setLevel(before[2])


def test_results_go_to_stdout_and_notes_and_errors_to_stderr(capsys):
    console.print("result")
    console.note("note")
    console.error("problem")
    assert capsys.readouterr() == ("result\n", "note\nerror: problem\n")


@pytest.mark.parametrize("write", [console.print, console.note, console.error])
def test_markup_in_a_message_is_printed_literally(write, capsys):
    write(LITERAL)
    assert LITERAL in "".join(capsys.readouterr())


def test_colons_in_a_message_are_printed_literally(capsys):
    console.print("frames:100:200")
    assert capsys.readouterr().out == "frames:100:200\n"


def test_a_long_line_is_not_wrapped_so_that_output_can_be_piped(capsys):
    console.print("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_a_table_shows_every_cell_and_aligns_numbers_to_the_right(capsys):
    console.table(Table("Scores", ("arm", "PSNR"), [("a[0]", 9.5), ("longer name", 21.25)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Scores"
    assert any("a[0]        │   9.5 │" in line.replace("┃", "│") for line in lines)
    assert any("longer name │ 21.25 │" in line for line in lines)


def test_a_wide_table_loses_its_lines_before_words_are_broken(capsys, monkeypatch):
    monkeypatch.setattr(console.out, "_width", 80)
    header = ("category", "items", "dB", "SSIM", "compliance", "consistency", "quality", "overall")
    console.table(Table("", header, [("background_reference", 140, 31.25, 0.971, 5.0, 4.44, 4.22, 4.55)]))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert list(header) in lines
    assert ["background_reference", "140", "31.25", "0.971", "5.0", "4.44", "4.22", "4.55"] in lines


def test_a_column_with_a_word_is_aligned_to_the_left(capsys):
    console.table(Table("", ("x",), [("1",), ("none",)]))
    assert "│ 1    │" in capsys.readouterr().out


def test_the_note_of_a_table_is_printed_below_it(capsys):
    console.table(Table("Scores", ("arm",), [("a",)], "Means [of] 3 items."))
    assert capsys.readouterr().out.rstrip().endswith("\nMeans [of] 3 items.")


def test_a_table_without_rows_still_shows_its_header(capsys):
    console.table(Table("Empty", ("left", "right"), []))
    assert "left ┃ right" in capsys.readouterr().out


def test_progress_yields_every_item_and_writes_only_to_stderr(capsys):
    assert list(console.progress(range(3), "encoding [x]")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "encoding [x]" in err
    assert "3/3" in err


def test_progress_over_an_iterator_counts_to_the_given_total(capsys):
    assert list(console.progress(iter("ab"), "encoding", total=5)) == ["a", "b"]
    assert "2/5" in capsys.readouterr().err


def test_a_progress_bar_advances_with_every_call(capsys):
    with console.progress_bar("sampling", total=4) as advance:
        advance()
        advance()
    assert "2/4" in capsys.readouterr().err


def test_kiwi_logs_from_level_info_and_other_packages_from_level_warning(logs, capsys):
    console.setup_logging()
    logging.getLogger("kiwi.models").info("loaded [x]")
    logging.getLogger("kiwi.models").debug("detail")
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("careful")
    out, err = capsys.readouterr()
    assert out == ""
    assert "loaded [x]" in err
    assert "careful" in err
    assert "detail" not in err
    assert "chatter" not in err
