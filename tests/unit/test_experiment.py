import pytest

from kiwi.errors import InputError
from kiwi.experiment import merge, read_experiment


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_file_says_only_how_it_differs_from_its_base(tmp_path):
    write(
        tmp_path,
        base="trainer: {max_steps: 5, devices: 1}\ndata: {train: [a, b]}\n",
        mine="base: base.yaml\ntrainer: {max_steps: 7}\ndata: {train: [c]}\n",
    )
    assert read_experiment(tmp_path / "mine.yaml") == {
        "trainer": {"max_steps": 7, "devices": 1},
        "data": {"train": ["c"]},
    }


def test_bases_have_bases_in_their_own_folders_and_later_ones_win(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, root="a: 1\nb: 1\nc: 1\n")
    write(tmp_path / "sub", first="base: ../root.yaml\nb: 2\nc: 2\n", second="c: 3\n")
    write(tmp_path, mine="base: [sub/first.yaml, sub/second.yaml]\nd: 4\n")
    assert read_experiment(tmp_path / "mine.yaml") == {"a": 1, "b": 2, "c": 3, "d": 4}


@pytest.mark.parametrize(
    ("below", "above", "wanted"),
    [
        (
            {"type": "Lora", "rank": 64},
            {"rank": 8},
            {"type": "Lora", "rank": 8},
        ),
        (
            {"type": "Lora", "rank": 64},
            {"type": "Lora"},
            {"type": "Lora", "rank": 64},
        ),
        ({"type": "Lora", "rank": 64}, {"type": "Full"}, {"type": "Full"}),
        ({"type": "Lora", "rank": 64}, "Full", "Full"),
        ("Full", {"type": "Lora"}, {"type": "Lora"}),
    ],
)
def test_another_choice_replaces_the_fields_of_the_one_before(below, above, wanted):
    assert merge({"tuning": below}, {"tuning": above}) == {"tuning": wanted}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: mine.yaml\n", "among its own bases"),
        ("base: other.yaml\n", "other.yaml cannot be read"),
        ("base: 3\n", "names no files"),
        ("- a\n", "is no configuration"),
        ("a: [\n", "cannot be read"),
        ("x: 2020-13-45\n", "cannot be read"),
        ('base: "a\\0b"\n', "among its own bases"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, text, told):
    with pytest.raises(InputError, match=told):
        read_experiment(write(tmp_path, mine=text) / "mine.yaml")
