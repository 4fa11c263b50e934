import numpy as np
import pytest
import torch

from kiwi.__main__ import main
from kiwi.editing import EditOptions, KiwiEditor, edit_file
from kiwi.errors import InputError, KiwiError, SpecError
from kiwi.flow.solvers import UniPCSolver
from kiwi.media.image import read_image, write_image
from kiwi.media.video import probe, read_video, write_video
from kiwi.models.sampling import Sampling
from kiwi.models.vae.tiling import Tiling
from kiwi.spec import from_dict


@pytest.fixture(scope="module")
def model(runs):
    return str(runs / "editor" / "model")


@pytest.fixture
def clip(tmp_path):
    """A clip that fits the model in nothing: odd sides, 7 frames, NTSC rate."""
    frames = np.random.default_rng(0).integers(0, 255, (7, 45, 63, 3), np.uint8)
    write_video(tmp_path / "in.mp4", frames, 23.976)
    return tmp_path / "in.mp4"


def test_the_edit_has_the_sources_size_length_and_rate(model, clip, tmp_path, capsys):
    argv = ["edit", str(clip), "--instruction", "Make it blue.", "--model", model, "--out", str(tmp_path / "out.mp4")]
    assert main(argv) == 0
    before, after = probe(clip), probe(tmp_path / "out.mp4")
    assert (after.height, after.width, after.frames, after.fps) == (45, 63, 7, before.fps)
    assert "7 frames" in capsys.readouterr().out


def test_references_instruction_seed_and_source_each_change_the_edit(model, clip, edit_folder):
    editor = KiwiEditor.from_pretrained(model)
    torch.manual_seed(0)
    for parameter in editor.model.parameters():  # three training steps leave most paths near zero
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    video = read_video(clip)
    picture = edit_folder / "0.png"

    def edit(words="Make it blue.", references=(picture,), seed=0, frames=video):
        return editor.edit(frames, words, references, seed=seed).frames_FHWC.astype(int)

    base = edit()
    assert np.array_equal(base, edit())
    other = type(video)(video.frames_FHWC[::-1].copy(), video.fps)
    for changed in (
        edit(references=()),
        edit(words="Make it red."),
        edit(seed=1),
        edit(frames=other),
        edit(references=(picture, picture)),
    ):
        assert np.abs(changed - base).mean() > 0.005


def test_a_saved_editor_edits_the_same_with_the_same_defaults(model, clip, tmp_path):
    editor = KiwiEditor.from_pretrained(model)
    editor.save_pretrained(tmp_path / "copy")
    copy = KiwiEditor.from_pretrained(tmp_path / "copy")
    assert copy.defaults == editor.defaults
    loaded, original = (e.edit(clip, "Make it blue.").frames_FHWC for e in (copy, editor))
    assert np.array_equal(loaded, original)


def test_one_frame_with_a_reference_is_edited(model, clip, edit_folder):
    """The published inference code crashes on this input."""
    frames = read_video(clip).frames_FHWC[:1]
    edited = KiwiEditor.from_pretrained(model).edit(type(read_video(clip))(frames, 1), "Blue.", [edit_folder / "0.png"])
    assert edited.frames_FHWC.shape == frames.shape


def test_steps_and_solver_are_used(model, clip, tmp_path):
    steps = []
    editor = KiwiEditor.from_pretrained(model)
    editor.edit(clip, "Blue.", sampling=Sampling(steps=3), on_step=lambda step, latents: steps.append(step))
    assert steps == [0, 1, 2]
    options = EditOptions(
        video=clip, instruction="x", model=model, out=tmp_path / "out.mp4", solver="unipc", steps=3, device="cpu"
    )
    edited, written = edit_file(options), read_video(options.out)
    expected = editor.edit(clip, "x", sampling=Sampling(steps=3, solver=UniPCSolver()))
    assert np.array_equal(edited.frames_FHWC, expected.frames_FHWC)
    assert written.frames_FHWC.shape == edited.frames_FHWC.shape


def test_a_size_of_zero_is_refused_and_not_replaced_by_the_default(model, clip):
    editor = KiwiEditor.from_pretrained(model)
    with pytest.raises(InputError, match="max_pixels"):
        editor.edit(clip, "Blue.", max_pixels=0)
    for wrong in ({"max_pixels": 0}, {"max_frames": 0}):
        with pytest.raises(SpecError, match=f"{next(iter(wrong))} must be at least 1"):
            editor.defaults.replace(**wrong)


def test_an_image_is_edited_as_a_video_of_one_frame(model, tmp_path):
    write_image(tmp_path / "in.png", np.full((32, 40, 3), 90, np.uint8))
    for name in ("out.mp4", "out.png"):
        out = str(tmp_path / name)
        assert main(["edit", str(tmp_path / "in.png"), "--instruction", "x", "--model", model, "--out", out]) == 0
    assert read_video(tmp_path / "out.mp4").frames_FHWC.shape == (1, 32, 40, 3)
    assert read_image(tmp_path / "out.png").shape == (32, 40, 3)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"video": "missing.mp4"}, None),
        ({"video": "noise.mp4"}, None),
        ({"instruction": "  "}, "empty-instruction"),
        ({"instruction": "snow " * 10**6}, "too-long"),
        ({"instruction": "sn\udcffow"}, "invalid-unicode"),
        ({"reference": ["noise.mp4"]}, None),
        ({"out": "nowhere/out.mp4"}, "missing-folder"),
        ({"video": "noise.mp4", "out": "noise.mp4"}, "output-is-input"),
        ({"out": "out.avi"}, "wrong-suffix"),
        ({"out": "out.png"}, "too-many-frames"),
        ({"model": "nothing"}, "missing-model"),
        ({"model": "."}, None),
        ({"steps": 0}, "out-of-range"),
        ({"device": "warp"}, "unusable-device"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(model, clip, tmp_path, monkeypatch, change, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(1).bytes(4000))
    values = {"video": str(clip), "instruction": "Blue.", "model": model, "out": "out.mp4"} | change
    with pytest.raises(KiwiError) as caught:
        edit_file(from_dict(EditOptions, values))
    assert code is None or caught.value.code == code
    assert not list(tmp_path.glob("out*"))


def test_the_command_reports_bad_input_in_one_paragraph(clip, tmp_path, capsys):
    argv = ["edit", str(clip), "--instruction", "Blue.", "--out", str(tmp_path / "out.mp4"), "--steps", "0"]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "--steps" in err
    assert "Traceback" not in err


def test_tiled_runs_the_autoencoder_over_tiles(model, clip, tmp_path, monkeypatch):
    used = []
    run = Tiling.run
    monkeypatch.setattr(Tiling, "run", lambda self, *args: used.append(self) or run(self, *args))
    argv = ["edit", str(clip), "--instruction", "Make it blue.", "--model", model, "--steps", "1"]
    assert main([*argv, "--out", str(tmp_path / "whole.mp4")]) == 0
    assert not used
    assert main([*argv, "--out", str(tmp_path / "tiled.mp4"), "--tiled"]) == 0
    assert used == [Tiling()] * 2  # to encode the source and to decode the edit
    # One tile covers a clip of this size.
    whole, tiled = (read_video(tmp_path / f"{name}.mp4").frames_FHWC.astype(int) for name in ("whole", "tiled"))
    assert np.abs(whole - tiled).mean() < 1
