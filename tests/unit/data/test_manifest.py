"""Manifests: the records of valid ones, and for malformed ones an error message with all problems."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from kiwi.data.clips import ImageFile, VideoFile
from kiwi.data.manifest import EditRecord, read_manifest
from kiwi.errors import ManifestError
from kiwi.media.video import write_video
from kiwi.reading import MAX_INSTRUCTION


def jpeg(level: int = 100) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with src/0..3.mp4, tgt/0..3.mp4, two reference images, and a still picture."""
    folder = tmp_path / "base"
    for sub in ("src", "tgt"):
        (folder / sub).mkdir(parents=True)
        for index in range(4):
            (folder / sub / f"{index}.mp4").write_bytes(b"x")
    (folder / "ref a.jpg").write_bytes(jpeg())
    (folder / "ref_b.jpg").write_bytes(jpeg(50))
    (folder / "still.png").write_bytes(jpeg())
    (tmp_path / "outside.mp4").write_bytes(b"x")
    return folder


def write(base: Path, text: str, name: str = "pairs.csv") -> Path:
    path = base / name
    path.write_bytes(text.encode())
    return path


def write_rows(base: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = base / f"pairs.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def problem(path: Path, code: str | None = None, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **options)
    assert caught.value.code == code or (code is None and caught.value.code)
    return str(caught.value)


# --- valid manifests -------------------------------------------------------------------------------


def test_csv_with_every_column(base: Path) -> None:
    path = write(
        base,
        "iid,src_video,tgt_video,prompt,ref_image,edited_type,mask\n"
        "a1,src/0.mp4,tgt/0.mp4,Make it red,ref a.jpg|ref_b.jpg,local_change,tgt/2.mp4\n"
        "a2,src/1.mp4,tgt/1.mp4,\"Say \"\"hi\"\", then go\",,,\n"
        "a3,still.png,tgt/1.mp4,Käse,,,\n",
    )  # fmt: skip
    first, second, third = read_manifest(path)
    assert first == EditRecord(
        id="a1",
        source=VideoFile(base / "src/0.mp4"),
        target=VideoFile(base / "tgt/0.mp4"),
        instruction="Make it red",
        references=(ImageFile(base / "ref a.jpg"), ImageFile(base / "ref_b.jpg")),
        category="local_change",
        mask=VideoFile(base / "tgt/2.mp4"),
        location="pairs.csv, line 2",
    )
    assert (second.instruction, second.references, second.category) == ('Say "hi", then go', (), None)
    assert second.mask is None
    assert third.instruction == "Käse"


def test_ids_default_to_the_row_number_and_do_not_depend_on_blank_lines(base: Path) -> None:
    path = write(base, "\ufeffsrc_video,tgt_video,prompt\r\n\r\nsrc/0.mp4,tgt/0.mp4,a\r\n\r\nsrc/1.mp4,tgt/1.mp4,b\r\n")
    assert [(r.id, r.location) for r in read_manifest(path)] == [
        ("pairs:1", "pairs.csv, line 3"),
        ("pairs:2", "pairs.csv, line 5"),
    ]


def test_line_numbers_are_those_of_the_file_across_quoted_newlines(base: Path) -> None:
    path = write(
        base,
        'src_video,tgt_video,prompt\nsrc/0.mp4,tgt/0.mp4,"two\nlines"\nsrc/1.mp4,tgt/1.mp4,b\nsrc/9.mp4,tgt/1.mp4,c\n',
    )
    message = problem(path)
    assert "pairs.csv, line 5: the src_video 'src/9.mp4' does not exist" in message
    (base / "src/9.mp4").touch()
    records = read_manifest(path)
    assert records[0].instruction == "two\nlines"
    assert [r.location.split()[-1] for r in records] == ["2", "4", "5"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_jsonl_and_parquet_give_the_same_records_as_csv(base: Path, kind: str) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "p"}
    rows = [
        row | {"ref_image": ["ref a.jpg", "ref_b.jpg"], "iid": "x"},
        row | {"ref_image": [], "iid": "y"},
        row | {"ref_image": None, "iid": None},
    ]
    records = read_manifest(write_rows(base, kind, rows))
    assert [r.references for r in records] == [(ImageFile(base / "ref a.jpg"), ImageFile(base / "ref_b.jpg")), (), ()]
    assert [r.id for r in records] == ["x", "y", "pairs:3"]
    unit = "line" if kind == "jsonl" else "row"
    assert [r.location for r in records] == [f"pairs.{kind}, {unit} {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_single_reference_may_be_plain_text_or_a_list_in_json(base: Path, kind: str) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "p"}
    rows = [
        row | {"ref_image": "ref_b.jpg"},
        row | {"ref_image": '["ref a.jpg", "ref_b.jpg"]'},
        row | {"ref_image": ""},
    ]
    records = read_manifest(write_rows(base, kind, rows))
    assert [len(r.references) for r in records] == [1, 2, 0]


@pytest.mark.parametrize("several", [False, True])
def test_refvie_parquet_contains_encoded_reference_images(base: Path, several: bool) -> None:
    data = [jpeg(30), jpeg(220)] if several else jpeg(30)
    rows = [
        {"iid": 7, "prompt": "p", "src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "ref_image_bytes": data},
        {"iid": 8, "prompt": "p", "src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "ref_image_bytes": None},
    ]
    first, second = read_manifest(write_rows(base, "parquet", rows))
    assert (first.id, second.references) == ("7", ())
    levels = [np.mean(image.decode()) for image in first.references]
    assert levels == pytest.approx([30, 220] if several else [30], abs=2)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("tgt/9.mp4", "the mask 'tgt/9.mp4' does not exist"),
        ("../outside.mp4", "the mask '../outside.mp4' leaves the folder"),
        (3, "mask is not text but int"),
    ],
)
def test_a_mask_is_a_file_inside_the_folder(base: Path, mask: Any, expected: str) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "p", "mask": mask}
    for kind in ("jsonl", "parquet"):
        assert expected in problem(write_rows(base, kind, [row]))


def test_paths_can_be_relative_to_another_folder_than_the_manifests(base: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "src_video,tgt_video,prompt\nsrc/0.mp4,tgt/0.mp4,a\n", "elsewhere.csv")
    assert read_manifest(path, base=base)[0].source.path == base / "src/0.mp4"
    assert "does not exist" in problem(path)
    assert "base folder" in problem(path, base=tmp_path / "none")


def test_the_target_can_be_missing_only_if_it_is_not_required(base: Path) -> None:
    no_column = write(base, "src_video,prompt\nsrc/0.mp4,a\n")
    assert read_manifest(no_column, require_target=False)[0].target is None
    assert "missing tgt_video" in problem(no_column)
    empty = write(base, "src_video,tgt_video,prompt\nsrc/0.mp4,,a\nsrc/1.mp4,tgt/1.mp4,b\n")
    assert [r.target for r in read_manifest(empty, require_target=False)] == [None, VideoFile(base / "tgt/1.mp4")]
    assert "line 2: tgt_video is empty" in problem(empty)


def test_columns_of_other_tools_are_ignored(base: Path) -> None:
    path = write(base, "src_video,tgt_video,prompt,score,editscore_model\nsrc/0.mp4,tgt/0.mp4,a,8.5,m\n")
    (record,) = read_manifest(path)
    assert (record.source.path, record.instruction) == (base / "src/0.mp4", "a")


def test_symlinks_inside_the_base_are_followed_and_those_leaving_it_rejected(base: Path, tmp_path: Path) -> None:
    (base / "src/link.mp4").symlink_to(base / "src/0.mp4")
    (base / "src/escape.mp4").symlink_to(tmp_path / "outside.mp4")
    (base / "way_out").symlink_to(tmp_path)
    path = write(base, "src_video,tgt_video,prompt\nsrc/link.mp4,tgt/0.mp4,a\n")
    assert read_manifest(path)[0].source.path == base / "src/0.mp4"
    for bad in ("src/escape.mp4", "way_out/outside.mp4"):
        path = write(base, f"src_video,tgt_video,prompt\n{bad},tgt/0.mp4,a\n")
        assert f"line 2: the src_video '{bad}' leaves the folder" in problem(path)


# --- malformed manifests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("source,tgt_video,prompt", "missing src_video"),
        ("src_vidoe,tgt_video,prompt", "unknown column 'src_vidoe', did you mean 'src_video'?"),
        ("src_video,tgt_video,Prompt", "unknown column 'Prompt', did you mean 'prompt'?"),
        ("src_video,tgt_video,prompt,ref_images", "did you mean 'ref_image'?"),
        ("src_video,tgt_video,prompt,prompt", "the column 'prompt' occurs twice"),
    ],
)
def test_wrong_columns_are_reported_with_the_header_line_all_columns_and_the_closest_name(
    base: Path, header: str, expected: str
) -> None:
    message = problem(write(base, f"\n{header}\nsrc/0.mp4,tgt/0.mp4,a\n"))
    assert expected in message
    assert "pairs.csv, line 2" in message
    assert f"columns: {header.replace(',', ', ')}" in message


def test_wrong_columns_in_jsonl_and_parquet(base: Path) -> None:
    rows = [{"src_video": "src/0.mp4", "target_video": "tgt/0.mp4", "prompt": "p"}]
    assert "pairs.jsonl, line 1: " in problem(write_rows(base, "jsonl", rows))
    for kind in ("jsonl", "parquet"):
        message = problem(write_rows(base, kind, rows))
        assert "tgt_video" in message
        assert "target_video" in message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("src/9.mp4,tgt/0.mp4,a,", "the src_video 'src/9.mp4' does not exist"),
        ("src/0.mp4,nowhere/0.mp4,a,", "the tgt_video 'nowhere/0.mp4' does not exist"),
        ("src,tgt/0.mp4,a,", "the src_video 'src' is a folder"),
        ("../outside.mp4,tgt/0.mp4,a,", "the src_video '../outside.mp4' leaves the folder"),
        ("src/../../outside.mp4,tgt/0.mp4,a,", "leaves the folder"),
        ("/etc/passwd,tgt/0.mp4,a,", "the src_video '/etc/passwd' is absolute"),
        ("src/0.mp4,tgt/..,a,", "is a folder"),
        ("src/0.mp4,tgt/0.mp4,  ,", "the prompt is empty"),
        (",tgt/0.mp4,a,", "src_video is empty"),
        ("src/0.mp4,tgt/0.mp4,a,src/0.mp4", "src/0.mp4 is not an image"),
        ("src/0.mp4,tgt/0.mp4,a,ref a.jpg|gone.jpg", "the ref_image 'gone.jpg' does not exist"),
        ("src/0.mp4,tgt/0.mp4,a,../ref.jpg", "the ref_image '../ref.jpg' leaves the folder"),
        ("src/0.mp4,tgt/0.mp4", "it has 2 cells where the header has 4 columns"),
        ("src/0.mp4,tgt/0.mp4,a,,,", "it has 6 cells where the header has 4 columns"),
        ('src/0.mp4,tgt/0.mp4,"never closed', "it is not valid CSV"),
    ],
)
def test_each_kind_of_malformed_row_is_reported_with_its_line(base: Path, row: str, expected: str) -> None:
    path = write(base, f"src_video,tgt_video,prompt,ref_image\nsrc/0.mp4,tgt/0.mp4,good,\n{row}\n")
    message = problem(path)
    assert f"{path} has 1 problem: pairs.csv, line 3: " in message
    assert expected in message


def test_duplicate_ids_name_both_rows(base: Path) -> None:
    path = write(base, "id,src_video,tgt_video,prompt\nk,src/0.mp4,tgt/0.mp4,a\nk,src/1.mp4,tgt/1.mp4,b\n")
    assert "line 3: the id 'k' is already in use (pairs.csv, line 2)" in problem(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"src_video": "src/0.mp4",', "it is not valid JSON"),
        ("[" * 100_000, "it is not valid JSON"),
        ("[1, 2]", "it is not a JSON object but list"),
        ('{"src_video": 5, "tgt_video": "tgt/0.mp4", "prompt": "a"}', "src_video is not text but int"),
        ('{"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": ["a"]}', "prompt is not text but list"),
        ('{"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": null}', "the prompt is empty"),
        (
            '{"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "a", "ref_image": [3]}',
            "ref_image holds int",
        ),
        ('{"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4"}', "missing prompt"),
    ],
)
def test_malformed_json_lines_are_reported_with_their_line(base: Path, line: str, expected: str) -> None:
    good = '{"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "a"}'
    path = write(base, f"{good}\n\n{line}\n{good}\n", "pairs.jsonl")
    message = problem(path)
    assert "has 1 problem: pairs.jsonl, line 3: " in message
    assert expected in message


def test_reference_bytes_that_are_not_an_image_are_reported_with_their_row(base: Path) -> None:
    row = {"prompt": "p", "src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4"}
    path = write_rows(base, "parquet", [row | {"ref_image_bytes": jpeg()}, row | {"ref_image_bytes": b"junk"}])
    assert "pairs.parquet, row 2: the image bytes of reference 1 is not an image" in problem(path)


def test_one_paragraph_has_the_first_five_problems_and_the_number_of_all(base: Path) -> None:
    rows = "".join(f"gone{n}.mp4,tgt/0.mp4,a\n" for n in range(2000))
    message = problem(write(base, "src_video,tgt_video,prompt\nsrc/0.mp4,tgt/0.mp4,a\n" + rows))
    assert "has 2000 problems: " in message
    for n in range(5):
        assert f"line {n + 3}: the src_video 'gone{n}.mp4' does not exist" in message
    assert "gone5" not in message
    assert "and 1995 more" in message
    assert "\n" not in message
    assert len(message) < 1500


@pytest.mark.parametrize("text", ["", "\n\n", "src_video,tgt_video,prompt\n", "\ufeff"])
def test_empty_manifests_are_rejected(base: Path, text: str) -> None:
    assert "pairs.csv is empty" in problem(write(base, text))
    assert "pairs.jsonl is empty" in problem(write(base, "\n\n", "pairs.jsonl"))


def test_files_that_are_not_manifests_are_rejected_and_named(base: Path) -> None:
    assert "unknown suffix" in problem(write(base, "x", "pairs.txt"))
    assert "gone.csv does not exist" in problem(base / "gone.csv")
    (base / "folder.csv").mkdir()
    assert "folder.csv is a folder" in problem(base / "folder.csv")
    assert "cannot be read as parquet" in problem(write(base, "not parquet", "pairs.parquet"))
    (base / "latin.csv").write_bytes("src_video,tgt_video,prompt\nsrc/0.mp4,tgt/0.mp4,Käse\n".encode("latin-1"))
    assert "latin.csv is not UTF-8" in problem(base / "latin.csv")


def test_a_large_manifest_is_read_completely(base: Path) -> None:
    rows = "".join(f"src/{n % 4}.mp4,tgt/{n % 4}.mp4,edit {n},ref a.jpg\n" for n in range(20_000))
    path = write(base, "src_video,tgt_video,prompt,ref_image\n" + rows)
    records = read_manifest(path)
    assert [record.instruction for record in records] == [f"edit {n}" for n in range(20_000)]
    assert all(record.source.path == base / f"src/{n % 4}.mp4" for n, record in enumerate(records))


def test_published_training_manifests_of_real_clips(clips: Path) -> None:
    video = read_manifest(clips / "train_video.csv")
    reference = read_manifest(clips / "train_reference.csv")
    assert (len(video), len(reference)) == (11, 5)
    assert all(len(r.references) == 1 and r.target is not None for r in reference)


# --- words for nothing, embedded media, other formats -----------------------------------------------------


WORDS_FOR_NOTHING = [
    "nan", "NaN", " NAN ", "None", "none", "null", "NULL", "N/A", "n/a", "#N/A", "<NA>", "-nan", "(null)", "nil", "\\N",
    "undefined", "-", "--", "?", "#REF!", "1.#IND", "nan nan", "\u200b", "\uff2e\uff41\uff2e",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS_FOR_NOTHING)
def test_words_such_as_null_are_empty_cells_in_every_format_and_column(base: Path, word: str) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "good"}
    optional = dict.fromkeys(("ref_image", "mask", "edited_type", "caption", "iid"), word)
    csv_path = write(base, f'src_video,tgt_video,prompt\nsrc/0.mp4,tgt/0.mp4,good\nsrc/0.mp4,tgt/0.mp4,"{word}"\n')
    assert "1 problem: pairs.csv, line 3: the prompt is empty" in problem(csv_path, "invalid-rows")
    for kind in ("jsonl", "parquet"):
        message = problem(write_rows(base, kind, [row, row | {"prompt": word}, row | {"src_video": word}]))
        assert "2 problems" in message
        assert "2: the prompt is empty" in message
        assert "3: src_video is empty" in message
        (record,) = read_manifest(write_rows(base, kind, [row | optional]))
        assert (record.references, record.mask, record.category, record.caption) == ((), None, None, "")
        assert record.id == "pairs:1"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_nulls_and_nan_numbers_are_empty_cells(base: Path, kind: str, nothing: float | None) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": nothing, "mask": nothing, "ref_image": nothing}
    message = problem(write_rows(base, kind, [row]), "invalid-rows")
    assert "1 problem" in message
    assert "1: the prompt is empty" in message


@pytest.mark.parametrize(
    "prompt",
    ["Remove the None sign", "null the sky", "nan bread", "a", "5", "🔴", "删除", "none of them", "Nana", "#red"],
)
def test_prompts_and_paths_may_contain_words_such_as_null(base: Path, prompt: str) -> None:
    (base / "nan.mp4").touch()
    (base / "null").mkdir()
    (base / "null/none.mp4").touch()
    row = {"src_video": "nan.mp4", "tgt_video": "null/none.mp4", "prompt": prompt}
    for kind in ("jsonl", "parquet"):
        assert read_manifest(write_rows(base, kind, [row]))[0].instruction == prompt


def encode_clip(tmp_path: Path) -> bytes:
    write_video(tmp_path / "clip.mp4", np.full((5, 32, 48, 3), 90, np.uint8), 8)
    return (tmp_path / "clip.mp4").read_bytes()


BINARY = [pyarrow.binary(), pyarrow.large_binary()]


@pytest.mark.parametrize("binary", BINARY)
@pytest.mark.parametrize("with_path", ["null", "a path that does not exist", "no field"])
def test_huggingface_columns_hold_images_and_clips_as_bytes(
    base: Path, tmp_path: Path, binary: pyarrow.DataType, with_path: str
) -> None:
    clip, image = encode_clip(tmp_path), jpeg(30)
    path = {} if with_path == "no field" else {"path": None if with_path == "null" else "/gone/x.mp4"}
    media = pyarrow.struct([("bytes", binary)] + ([("path", pyarrow.string())] if path else []))
    types = {"src_video": media, "tgt_video": media, "mask": media, "prompt": pyarrow.string()}
    schema = pyarrow.schema(
        [*types.items(), ("ref_image", pyarrow.list_(media))], {"huggingface": '{"info": {"features": {}}}'}
    )
    rows = [
        {"src_video": {"bytes": data, **path}, "tgt_video": {"bytes": data, **path}, "prompt": "a",
         "mask": {"bytes": data, **path}, "ref_image": [{"bytes": image, **path}] * count}
        for data, count in ((clip, 2), (image, 0))
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), base / "hf.parquet")
    video, still = read_manifest(base / "hf.parquet")
    assert (video.source.read_info().frames, video.source.decode().shape) == (5, (5, 32, 48, 3))
    assert (still.source.read_info().frames, still.source.decode().shape) == (1, (1, 8, 8, 3))
    assert video.target == video.mask == video.source != still.source
    assert [reference.decode().mean() for reference in video.references] == pytest.approx([30, 30], abs=2)
    assert still.references == ()


def test_huggingface_columns_hold_paths_or_nothing(base: Path) -> None:
    nothing = {"bytes": None, "path": None}
    row = {
        "src_video": {"bytes": None, "path": "src/0.mp4"},
        "tgt_video": {"bytes": b"", "path": "tgt/0.mp4"},
        "prompt": "a",
        "ref_image": {"bytes": None, "path": "ref a.jpg"},
        "mask": nothing,
    }
    for kind in ("parquet", "jsonl"):
        if kind == "jsonl":
            row["tgt_video"] = {"path": "tgt/0.mp4"}
        (record,) = read_manifest(write_rows(base, kind, [row]))
        assert (record.source.path, record.target) == (base / "src/0.mp4", VideoFile(base / "tgt/0.mp4"))
        assert (record.references, record.mask) == ((ImageFile(base / "ref a.jpg"),), None)
    assert "src_video is empty" in problem(write_rows(base, "parquet", [row | {"src_video": nothing}]))
    outside = {"bytes": None, "path": "../outside.mp4"}
    assert "leaves the folder" in problem(write_rows(base, "parquet", [row | {"src_video": outside}]))
    for wrong in ({"bytes": "text", "path": None}, {"url": "x"}, {}, ["src/0.mp4"]):
        assert "line 1: src_video " in problem(write_rows(base, "jsonl", [row | {"src_video": wrong}]), "invalid-rows")


def test_a_parquet_file_of_huggingface_images_is_read(base: Path) -> None:
    cases = Path(__file__).parents[2] / "cases"
    (base / "videos").mkdir()
    for index in range(2):
        for name in ("source", "target"):
            (base / f"videos/easy-test-0-00000{index}_{name}.mp4").touch()
    records = read_manifest(cases / "hf_image.parquet", base=base)
    assert [reference.decode().shape for record in records for reference in record.references]
    message = problem(cases / "nan.csv", base=base)
    assert all(f"line {line}: the prompt is empty" in message for line in (2, 3))


def test_a_cell_that_a_dictionary_repeats_is_in_memory_once(base: Path) -> None:
    count, size = 2000, 1_000_000
    data = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), [b"\0" * size])
    media = pyarrow.StructArray.from_arrays([data, pyarrow.nulls(count, pyarrow.string())], ["bytes", "path"])
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), ["a" * size])
    good = {"src_video": media, "tgt_video": media, "prompt": pyarrow.array(["a"] * count)}
    for store_schema in (True, False):
        path = base / "bomb.parquet"
        pyarrow.parquet.write_table(pyarrow.table(good), path, store_schema=store_schema)
        records = read_manifest(path)
        assert len({id(clip.media.data) for r in records for clip in (r.source, r.target)}) == 1  # type: ignore[union-attr]
    pyarrow.parquet.write_table(pyarrow.table(good | {"prompt": text}), path)
    message = problem(path, "invalid-rows")
    assert "has 2000 problems" in message
    assert f"prompt has {size} characters" in message
    assert len(message) < 1500


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_other_delimiters_are_rejected(base: Path, delimiter: str, quote: str) -> None:
    header, row = ["src_video", "tgt_video", "prompt"], ["src/0.mp4", "tgt/0.mp4", "Red, please"]
    text = "\n".join(delimiter.join(f"{quote}{cell}{quote}" for cell in cells) for cells in (header, row))
    for prefix in ("", "\ufeff", "\r\n", f"sep={delimiter}\n"):
        problem(write(base, prefix + text), "wrong-delimiter")


def test_backslashes_in_paths_are_named_in_the_error_unless_such_a_file_exists(base: Path) -> None:
    path = write(base, "src_video,tgt_video,prompt\nsrc\\0.mp4,tgt/0.mp4,a\n")
    assert "line 2: the src_video 'src\\\\0.mp4' has backslashes" in problem(path, "invalid-rows")
    (base / "src\\0.mp4").touch()
    assert len(read_manifest(path)) == 1


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-32", "UTF-32"), ("latin-1", "line 2"), ("cp1252", "line 2")],
)
@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_other_encodings_are_named_in_the_error(base: Path, encoding: str, expected: str, name: str) -> None:
    text = "src_video,tgt_video,prompt\nsrc/0.mp4,tgt/0.mp4,Käse\n"
    if name.endswith("l"):
        text = '\n{"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "Käse"}\n'
    (base / name).write_bytes(text.encode(encoding))
    assert expected in problem(base / name, "unreadable-file")


def test_a_field_that_a_json_line_repeats_is_an_error(base: Path) -> None:
    line = '{"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "a", "prompt": "b"}\n'
    assert "line 1: it is not valid JSON (the column 'prompt' occurs twice)" in problem(write(base, line, "p.jsonl"))


@pytest.mark.parametrize(
    "path",
    ["a" * 300 + ".mp4", "a" * 5000, "src/" * 500 + "0.mp4", "src/0\0.mp4", "C:\\a.mp4", "\\\\host\\a.mp4", "~/a"],
)
def test_paths_that_no_file_can_have_are_reported_with_their_row(base: Path, path: str) -> None:
    row = {"src_video": path, "tgt_video": "tgt/0.mp4", "prompt": "a", "ref_image": path}
    message = problem(write_rows(base, "jsonl", [row]), "invalid-rows")
    assert "line 1: the src_video" in message
    assert "line 1: the ref_image" in message
    problem(base / ("a" * 300 + ".csv"), "missing-file")


@pytest.mark.parametrize("column", ["src_video", "prompt", "caption", "edited_type", "iid", "ref_image"])
@pytest.mark.parametrize("text", ["a\0b", "a\ud800", "x" * 20_000])
def test_text_that_no_tokenizer_or_file_takes_is_reported_with_its_row(base: Path, column: str, text: str) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "a"}
    message = problem(write_rows(base, "jsonl", [row, row | {column: text}]), "invalid-rows")
    assert "has 1 problem: pairs.jsonl, line 2: the " in message
    assert len(message) < 1000


def test_a_nul_behind_the_first_lines_of_a_csv_is_reported_with_its_line(base: Path) -> None:
    rows = "src/0.mp4,tgt/0.mp4,a\n" * 20
    path = write(base, f"src_video,tgt_video,prompt\n{rows}src/0.mp4,tgt/0.mp4,a\0b\n")
    assert "line 22: the prompt is not valid" in problem(path, "invalid-rows")


def test_prompts_are_as_long_as_instructions_may_be(base: Path) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "a" * MAX_INSTRUCTION}
    assert len(read_manifest(write_rows(base, "jsonl", [row]))) == 1
    problem(write_rows(base, "jsonl", [row | {"prompt": "a" * (MAX_INSTRUCTION + 1)}]), "invalid-rows")


@pytest.mark.parametrize("value", [["a"], {"a": 1}, False, True])
def test_ids_are_text_or_numbers(base: Path, value: Any) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "a"}
    assert "id is not text" in problem(write_rows(base, "jsonl", [row | {"iid": value}]), "invalid-rows")
    numbers = [row | {"iid": 7}, row | {"iid": 7.5}]
    assert [r.id for r in read_manifest(write_rows(base, "jsonl", numbers))] == ["7", "7.5"]


def test_a_row_has_at_most_a_hundred_references(base: Path) -> None:
    row = {"src_video": "src/0.mp4", "tgt_video": "tgt/0.mp4", "prompt": "a", "ref_image": ["ref_b.jpg"] * 101}
    assert "ref_image holds 101 images" in problem(write_rows(base, "jsonl", [row]), "invalid-rows")


def test_a_file_of_a_similar_name_and_an_address_are_named(base: Path) -> None:
    (base / "src/Ka\u0308se.mp4").touch()
    row = {"src_video": "src/K\u00e4se.mp4", "tgt_video": "tgt/0.mp4", "prompt": "a"}
    message = problem(write_rows(base, "jsonl", [row, row | {"src_video": "src/0.MP4"}]), "invalid-rows")
    assert "but there is 'Ka\u0308se.mp4' in another Unicode normalization" in message
    assert "'src/0.MP4' does not exist, but there is '0.mp4'" in message
    row["src_video"] = "https://example.org/a.mp4"
    assert "is an address" in problem(write_rows(base, "jsonl", [row]), "invalid-rows")
