"""Definitions and data of benchmarks: numbers of items, and errors that name the line of a malformed list."""

import csv
import shutil
from collections import Counter

import pytest
import yaml

from kiwi.bench.rubric import read_builtin_rubrics
from kiwi.bench.suites import SUITES, read_items, read_published_rows, read_suite
from kiwi.errors import InputError, ManifestError


@pytest.mark.parametrize("name", SUITES)
def test_every_category_has_a_rubric_with_its_dimensions(name):
    suite = read_suite(name)
    rubrics = read_builtin_rubrics(suite)
    assert list(rubrics) == list(suite.categories)
    for category, rubric in rubrics.items():
        assert rubric.dimensions == suite.categories[category].dimensions
        score_lines = [line for line in rubric.text.splitlines() if line.endswith(": <1 to 5>")]
        assert [line.partition(":")[0] for line in score_lines] == list(rubric.dimensions)
    assert len({rubric.hash for rubric in rubrics.values()}) == len(rubrics)


def test_suites_have_the_published_numbers_of_items():
    assert read_suite("openve").expected_items == 308
    assert read_suite("refvie").expected_items == 110


@pytest.mark.parametrize(("name", "doubted"), [("openve", []), ("refvie", ["ReCo"])])
def test_the_mean_of_the_published_columns_is_the_published_overall(name, doubted):
    rows = read_published_rows(read_suite(name))
    inconsistent = [
        row.method for row in rows if abs(sum(row.columns.values()) / len(row.columns) - row.overall) > 0.0051
    ]
    assert inconsistent == doubted
    assert {row.method for row in rows if row.doubt} >= set(inconsistent)


def test_rows_that_look_transposed_are_marked_doubtful():
    doubted = [row.method for row in read_published_rows(read_suite("openve")) if row.doubt]
    assert doubted == ["Kiwi-Edit stage 2, 480p", "Kiwi-Edit stage 2, 720p"]


def test_items_of_an_export_are_read(world, suite):
    data = read_items(suite, world)
    assert Counter(item.category for item in data.items) == dict.fromkeys(suite.categories, 2)
    assert len({item.edited_name for item in data.items}) == 10
    assert all(item.source.is_file() and item.edited_name == f"{item.source.stem}_edited.mp4" for item in data.items)


@pytest.fixture
def copied_data(world, tmp_path):
    shutil.copytree(world, tmp_path / "data")
    return tmp_path / "data"


def rewrite_list(data, change):
    file = data / "benchmark_videos.csv"
    rows = list(csv.DictReader(file.open()))
    change(rows)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_excluded_categories_are_counted_and_not_scored(copied_data, suite):
    rewrite_list(copied_data, lambda rows: rows[3].update(edited_type="creative_edit"))
    data = read_items(suite, copied_data)
    assert len(data.items) == 9
    assert data.excluded == {"creative_edit": 1}
    assert "five categories" in suite.excluded["creative_edit"]


def test_items_that_share_a_video_have_different_edits(copied_data, suite):
    rewrite_list(copied_data, lambda rows: rows[1].update(original_video=rows[0]["original_video"]))
    first, second, *_ = read_items(suite, copied_data).items
    assert first.source == second.source
    assert second.edited_name == f"{first.source.stem}_2_edited.mp4"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda rows: rows[2].update(edited_type="weather"), "line 4"),
        (lambda rows: rows[2].update(prompt=" "), "line 4 has no prompt"),
        (lambda rows: rows[0].update(original_video="videos/none.mp4"), "1 of 10 files"),
        (lambda rows: rows[0].update(original_video="../../etc/passwd"), "leaves the folder"),
        (lambda rows: rows[0].update(original_video="/etc/passwd"), "absolute"),
    ],
)
def test_unusable_lists_are_rejected_with_their_line(copied_data, suite, change, named):
    rewrite_list(copied_data, change)
    with pytest.raises((ManifestError, InputError), match=named):
        read_items(suite, copied_data)


@pytest.mark.parametrize("text", ["{", "a: b", "- 3", "- {src_video: a.mp4}"])
def test_malformed_lists_with_references_are_rejected(tmp_path, text):
    (tmp_path / "refvie_bench.yaml").write_text(text)
    with pytest.raises(ManifestError, match=r"refvie_bench\.yaml"):
        read_items(read_suite("refvie"), tmp_path)


def test_each_item_has_its_reference(tmp_path):
    for name in ("a.mp4", "b.mp4", "a.png"):
        (tmp_path / name).touch()
    item = {"src_video": "a.mp4", "ref_img": "a.png", "instruction": "Put it there.", "edit_type": "subject"}
    listed = [item, {**item, "src_video": "b.mp4", "edit_type": "background"}]
    (tmp_path / "refvie_bench.yaml").write_text(yaml.safe_dump(listed))
    data = read_items(read_suite("refvie"), tmp_path)
    assert [(item.category, item.reference.name) for item in data.items] == [
        ("subject", "a.png"),
        ("background", "a.png"),
    ]


def test_an_unknown_benchmark_is_rejected():
    with pytest.raises(InputError, check=lambda error: error.code == "unknown-suite"):
        read_suite("imagenet")
