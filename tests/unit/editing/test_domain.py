"""Reasons why an edit is outside a model's training domain; none for models that were trained on other videos."""

from fractions import Fraction

import numpy as np
import pytest

from kiwi.editing import EditOptions, edit_file
from kiwi.editing.domain import out_of_domain_reasons
from kiwi.editing.editor import KiwiEditor
from kiwi.media.image import write_image
from kiwi.media.video import Video
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults
from kiwi.models.vae.wan import WanVae
from kiwi.sandbox.pairs import make_pair


@pytest.fixture(scope="module")
def editor(tiny_config):
    config = tiny_config.replace(vae=WanVae(path="sandbox/vae"), dit=tiny_config.dit.replace(latent_channels=24))
    return KiwiEditor(KiwiEdit(config), EditingDefaults(max_pixels=1024, max_frames=5, domain="sandbox"))


@pytest.fixture
def reasons(editor):
    """A function that lists the reasons for frames and an instruction."""
    return lambda frames, *rest: out_of_domain_reasons(editor, Video(frames, Fraction(8)), *rest)


@pytest.mark.parametrize("level", ["easy", "full"])
def test_sandbox_samples_are_in_domain(reasons, level):
    for index in range(8):
        pair = make_pair(1, index, frames=5, height=32, width=32, level=level, split="new_both")
        assert reasons(pair.source, pair.instruction, int(pair.reference is not None)) == []


def test_unknown_words_unlike_videos_and_large_sizes_are_each_reported(reasons):
    pair = make_pair(1, 0, frames=5, height=32, width=32)
    (word_reason,) = reasons(pair.source, "Let it snow on the red ring.")
    assert "'it'" in word_reason
    assert "'snow'" in word_reason
    noise = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
    (psnr,) = reasons(noise, pair.instruction)
    assert "dB" in psnr
    large = make_pair(1, 0, frames=9, height=96, width=96)
    assert any("9 frames of 96x96" in reason for reason in reasons(large.source, large.instruction))
    # Four times the training size is resized and still in domain.
    larger = make_pair(1, 0, frames=5, height=64, width=64)
    assert reasons(larger.source, larger.instruction) == []
    wider = np.pad(larger.source, [(0, 0), (0, 0), (0, 32), (0, 0)], mode="edge")
    assert any("5 frames of 64x96" in reason for reason in reasons(wider, larger.instruction))


@pytest.mark.parametrize(
    ("instruction", "references", "expected"),
    [
        ("Use the reference picture as the background.", 1, None),
        ("Use the reference picture as the background.", 0, "no reference image"),
        ("Use the reference picture as the background.", 2, "2 reference images"),
        ("Make the red ring blue.", 1, "does not mention a reference"),
        ("Make the red ring blue " * 5, 0, "25 words"),
    ],
)
def test_references_and_lengths_unlike_the_training_data_are_reported(reasons, instruction, references, expected):
    source = make_pair(1, 0, frames=5, height=32, width=32).source
    reported = reasons(source, instruction, references)
    assert len(reported) == (expected is not None)
    assert expected is None or expected in reported[0]


@pytest.mark.parametrize(("std", "in_domain"), [(2, True), (60, False)])
def test_a_little_noise_stays_in_domain_and_strong_noise_does_not(reasons, std, in_domain):
    pair = make_pair(1, 0, frames=5, height=32, width=32)
    noise = np.random.default_rng(0).normal(0, std, pair.source.shape)
    noisy = np.clip(pair.source + noise, 0, 255).astype(np.uint8)
    assert (reasons(noisy, pair.instruction) == []) == in_domain


def test_a_model_that_was_trained_on_other_videos_has_no_reasons(editor):
    other = KiwiEditor(editor.model, EditingDefaults(max_pixels=1024, max_frames=5))
    noise = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
    assert out_of_domain_reasons(other, Video(noise, Fraction(8)), "Let it snow.") == []


@pytest.mark.parametrize("in_domain", [True, False])
def test_the_warning_with_the_training_domain_appears_only_for_edits_outside_it(
    editor, tmp_path, monkeypatch, caplog, in_domain
):
    pair = make_pair(1, 0, frames=1, height=32, width=32)
    write_image(tmp_path / "in.png", pair.source[0])
    monkeypatch.setattr(KiwiEditor, "from_pretrained", lambda path, device: editor)
    instruction = pair.instruction if in_domain else "Let it snow."
    edit_file(EditOptions(video=tmp_path / "in.png", instruction=instruction, out=tmp_path / "out.png", steps=1))
    warnings = " ".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert ("'snow'" in warnings, "The domain: rendered scenes" in warnings) == (not in_domain,) * 2
    assert in_domain or "never real videos" in warnings
