"""What lies outside the world that a model was trained in is told, and nothing of models that know more."""

from fractions import Fraction

import numpy as np
import pytest

from kiwi.editing.domain import out_of_domain_reasons
from kiwi.editing.editor import KiwiEditor
from kiwi.media.video import Video
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults
from kiwi.models.vae.wan import WanVae
from kiwi.sandbox.pairs import make_pair


@pytest.fixture(scope="module")
def editor(tiny_config):
    config = tiny_config.replace(vae=WanVae(path="sandbox/vae"), dit=tiny_config.dit.replace(latent_channels=24))
    return KiwiEditor(KiwiEdit(config), EditingDefaults(max_pixels=1024, max_frames=5, domain="sandbox"))


def video(frames):
    return Video(frames, Fraction(8))


@pytest.mark.parametrize("level", ["easy", "full"])
def test_items_of_the_sandbox_are_familiar(editor, level):
    for index in range(8):
        pair = make_pair(1, index, frames=5, height=32, width=32, level=level, split="new_both")
        assert (
            out_of_domain_reasons(editor, video(pair.source), pair.instruction, int(pair.reference is not None)) == []
        )


def test_words_pictures_and_sizes_of_elsewhere_are_each_told(editor):
    pair = make_pair(1, 0, frames=5, height=32, width=32)
    (told,) = out_of_domain_reasons(editor, video(pair.source), "Let it snow on the red ring.")
    assert "'it'" in told
    assert "'snow'" in told
    noise = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
    (told,) = out_of_domain_reasons(editor, video(noise), pair.instruction)
    assert "dB" in told
    large = make_pair(1, 0, frames=9, height=96, width=96)
    assert any(
        "96x96, 9 frames" in told for told in out_of_domain_reasons(editor, video(large.source), large.instruction)
    )
    larger = make_pair(1, 0, frames=5, height=64, width=64)  # four times the pixels are shrunk and familiar
    assert out_of_domain_reasons(editor, video(larger.source), larger.instruction) == []
    wider = Video(np.pad(larger.source, [(0, 0), (0, 0), (0, 32), (0, 0)], mode="edge"), Fraction(8))
    assert any("64x96, 5 frames" in told for told in out_of_domain_reasons(editor, wider, larger.instruction))


def test_references_and_lengths_that_no_edit_had_are_told(editor):
    pair = make_pair(1, 0, frames=5, height=32, width=32)
    about = "Use the reference picture as the background."
    for text, count, expected in (
        (about, 1, None),
        (about, 0, "there is none"),
        (about, 2, "2 references"),
        (pair.instruction, 1, "no word"),
        ("Make the red ring blue " * 5, 0, "25 words"),
    ):
        told = out_of_domain_reasons(editor, video(pair.source), text, count)
        assert len(told) == (expected is not None)
        assert expected is None or expected in told[0]


def test_faithful_is_below_the_world_and_above_noise(editor):
    """A little noise is still of the world, as much as the pictures have is not."""
    pair = make_pair(1, 0, frames=5, height=32, width=32)
    for scale, known in ((2, True), (60, False)):
        noise = np.random.default_rng(0).normal(0, scale, pair.source.shape)
        noisy = np.clip(pair.source + noise, 0, 255).astype(np.uint8)
        assert (out_of_domain_reasons(editor, video(noisy), pair.instruction) == []) == known


def test_of_other_models_nothing_is_told(editor):
    elsewhere = KiwiEditor(editor.model, EditingDefaults(max_pixels=1024, max_frames=5))
    noise = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
    assert out_of_domain_reasons(elsewhere, video(noise), "Let it snow.") == []
