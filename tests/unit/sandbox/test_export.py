"""Exports of the sandbox: readable media, published columns, and resuming."""

import csv
import json

import numpy as np
import pytest
import yaml

from kiwi.data.manifest import read_manifest
from kiwi.errors import InputError, SpecError
from kiwi.media.image import read_image
from kiwi.media.video import read_video
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox
from kiwi.sandbox.pairs import make_pair

SETTINGS = {"seed": 2, "frames": 5, "height": 32, "width": 48}


def export(out, items, **settings):
    """Export items with the arguments of `make_pair`."""
    size = settings.pop("height")
    return export_sandbox(SandboxExportOptions(out=out, items=items, size=size, **settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    export(out, 14, **SETTINGS)
    return out


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_manifests_have_the_published_columns_masks_and_all_items(folder):
    video, reference, image = (rows(folder / f"{name}.csv") for name in ("video", "reference", "image"))
    columns = ["src_video", "tgt_video", "prompt", "iid", "edited_type", "mask", "caption"]
    assert list(video[0]) == list(image[0]) == columns
    assert list(reference[0]) == [*video[0], "ref_image"]
    assert len(video) == len(image) == 10
    assert {row["iid"] for row in video + reference} == {make_pair(index=i, **SETTINGS).id for i in range(14)}
    assert {row["edited_type"] for row in reference} == {"subject_reference", "background_reference"}
    pair = make_pair(index=0, **SETTINGS)
    assert (video[0]["prompt"], video[0]["edited_type"]) == (pair.instruction, pair.category)


def test_the_package_reads_its_own_manifests(folder):
    assert len(read_manifest(folder / "video.csv")) == len(read_manifest(folder / "image.csv")) == 10
    assert all(len(record.references) == 1 for record in read_manifest(folder / "reference.csv"))


def test_media_show_the_pairs(folder):
    for index in range(14):
        pair = make_pair(index=index, **SETTINGS)
        for name, video in (("source", pair.source), ("target", pair.target)):
            stored = read_video(folder / "videos" / f"{pair.id}_{name}.mp4").frames_FHWC
            assert stored.shape == video.shape
            # 4:2:0 halves the colour's resolution, which shows at the edges of tiny sprites.
            assert np.abs(stored.astype(int) - video).mean() < 10
        if pair.reference is None:
            assert (read_image(folder / "images" / f"{pair.id}_target.png") == pair.target[0]).all()
        else:
            assert (read_image(folder / "references" / f"{pair.id}.png") == pair.reference).all()


def test_masks_show_what_changed_exactly(folder):
    records = [row for name in ("video", "reference", "image") for row in rows(folder / f"{name}.csv")]
    pairs = {pair.id: pair for pair in (make_pair(index=i, **SETTINGS) for i in range(14))}
    assert len(records) == 24
    for row in records:
        mask = read_video(folder / row["mask"]).frames_FHWC
        truth = pairs[row["iid"]].mask[: len(mask)]
        assert len(mask) == len(read_video(folder / row["tgt_video"]).frames_FHWC)
        assert (mask == 255 * truth[..., None]).all()


def test_an_interrupted_export_is_resumed(folder):
    complete, missing = (folder / f"videos/full-train-2-{name}.mp4" for name in ("000000_source", "000001_target"))
    mask = folder / "masks/full-train-2-000001.mp4"
    before = complete.stat().st_mtime_ns, (folder / "video.csv").read_bytes()
    for file in (mask, missing, folder / "video.csv"):
        file.unlink()
    export(folder, 14, **SETTINGS)
    assert (complete.stat().st_mtime_ns, (folder / "video.csv").read_bytes()) == before
    assert (read_video(mask).frames_FHWC[..., 0] == 255 * make_pair(index=1, **SETTINGS).mask).all()
    # Not compared bytewise: x264 may encode differently on another processor.
    restored, target = read_video(missing).frames_FHWC, make_pair(index=1, **SETTINGS).target
    assert np.abs(restored.astype(int) - target).mean() < 10


def test_files_that_were_cut_short_do_not_count_as_complete(tmp_path, caplog):
    export(tmp_path / "world", 7, **SETTINGS)
    damaged = [next((tmp_path / "world").glob(f"{name}/*")) for name in ("videos", "images", "masks", "references")]
    for cut in (2, 1000):  # halves, and empty files
        contents = [path.read_bytes() for path in damaged]
        for path, content in zip(damaged, contents, strict=True):
            path.write_bytes(content[: len(content) // cut])
        export(tmp_path / "world", 7, **SETTINGS)
        assert [path.read_bytes() for path in damaged] == contents
    assert caplog.text.count("is written again") == 8


def test_lists_without_rows_are_omitted(tmp_path):
    manifests = export(tmp_path / "world", 3, **SETTINGS, categories=("local_add",))
    assert manifests == {"video.csv": 3, "image.csv": 3}
    lists = {item.name for item in (tmp_path / "world").iterdir() if item.is_file()} - {"world.json"}
    assert lists == {"video.csv", "image.csv", "benchmark_videos.csv"}


def read_files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("items", [1, 13])
def test_an_export_of_fewer_items_is_rejected_and_nothing_changes(folder, items):
    before = read_files(folder)
    with pytest.raises(InputError, match="14 items", check=lambda error: error.code == "changed-settings"):
        export(folder, items, **SETTINGS)
    assert read_files(folder) == before


def test_an_export_of_more_items_extends_the_folder_to_what_a_new_export_writes(tmp_path):
    export(tmp_path / "new", 4, **SETTINGS)
    export(tmp_path / "world", 2, **SETTINGS)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "world" / "videos").iterdir()}
    export(tmp_path / "world", 4, **SETTINGS)
    assert read_files(tmp_path / "world") == read_files(tmp_path / "new")
    assert {file: file.stat().st_mtime_ns for file in times} == times
    record = json.loads((tmp_path / "world" / "world.json").read_text())
    del record["items"]  # as the previous release wrote it
    (tmp_path / "world" / "world.json").write_text(json.dumps(record))
    export(tmp_path / "world", 4, **SETTINGS)
    assert json.loads((tmp_path / "world" / "world.json").read_text())["items"] == 4


@pytest.mark.parametrize("items", ["4", None, [4], -1, 2.5])
def test_a_damaged_number_of_items_is_replaced(tmp_path, items):
    export(tmp_path / "world", 1, **SETTINGS)
    record = tmp_path / "world" / "world.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"items": items}))
    export(tmp_path / "world", 1, **SETTINGS)
    assert json.loads(record.read_text())["items"] == 1


def test_frames_too_wide_for_a_visible_edit_are_rejected(tmp_path):
    with pytest.raises(InputError, match="32", check=lambda error: error.code == "out-of-range"):
        export(tmp_path / "world", 1, frames=2, height=32, width=2000)
    assert not (tmp_path / "world").exists()


def test_other_settings_for_the_same_folder_are_rejected(folder):
    with pytest.raises(
        InputError, match=r"seed 3, frames 9.*seed 2, frames 5", check=lambda error: error.code == "changed-settings"
    ):
        export(folder, 14, **{**SETTINGS, "seed": 3, "frames": 9})
    assert json.loads((folder / "world.json").read_text())["seed"] == 2


@pytest.mark.parametrize(
    "changed",
    [{"fps": 9}, {"split": "new_words"}, {"level": "middle"}, {"width": 40}, {"categories": ("local_add",)}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_setting_is_recorded(tmp_path, changed):
    export(tmp_path / "world", 1, frames=1, height=32)
    with pytest.raises(
        InputError, match=f"Got: {next(iter(changed))}", check=lambda error: error.code == "changed-settings"
    ):
        export(tmp_path / "world", 1, **{"frames": 1, "height": 32, **changed})


def test_a_folder_with_unexpected_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt", check=lambda error: error.code == "occupied-folder"):
        export(tmp_path, 2, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "invalid",
    [
        {"items": 0},
        {"frames": 0},
        {"fps": -1},
        {"fps": float("inf")},
        {"fps": 1e-9},
        {"categories": ("teleport",)},
        {"seed": -1},
        {"height": 4},
    ],
)
def test_invalid_settings_leave_no_folder_behind(tmp_path, invalid):
    with pytest.raises((InputError, SpecError)):
        export(tmp_path / "world", **{"items": 2, **SETTINGS, **invalid})
    assert not (tmp_path / "world").exists()


def test_the_same_items_are_listed_in_the_layouts_of_the_published_benchmarks(folder):
    openve = list(csv.DictReader((folder / "benchmark_videos.csv").open(newline="", encoding="utf-8")))
    refvie = yaml.safe_load((folder / "refvie_bench.yaml").read_text())
    pairs = [make_pair(index=i, **SETTINGS) for i in range(14)]
    edits, references = ([p for p in pairs if p.category.endswith("_reference") == has] for has in (False, True))
    assert [list(row) for row in openve[:1]] == [["edited_type", "prompt", "original_video"]]
    assert [(row["edited_type"], row["prompt"]) for row in openve] == [(p.category, p.instruction) for p in edits]
    assert [row["instruction"] for row in refvie] == [p.instruction for p in references]
    assert [row["edit_type"] for row in refvie] == ["subject", "background"] * 2
    paths = [row["original_video"] for row in openve] + [row[k] for row in refvie for k in ("src_video", "ref_img")]
    assert all((folder / path).is_file() for path in paths)


def test_the_lists_have_the_columns_of_the_published_files(folder, clips):
    with (clips / "openve-mini" / "benchmark_videos.csv").open(newline="", encoding="utf-8") as file:
        published = next(csv.reader(file))
    with (folder / "benchmark_videos.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == published
    published, exported = ((f / "refvie_bench.yaml").read_text() for f in (clips / "refvie-mini", folder))
    assert list(yaml.safe_load(exported)[0]) == list(yaml.safe_load(published)[0])
