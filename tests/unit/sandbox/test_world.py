"""Scenes and their renderings: deterministic, visible, and with exact masks."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS, contrasting_colours, lab_distance
from kiwi.sandbox.sampling import scene_at
from kiwi.sandbox.world import MARK_SHADE, Appearance, Background, Scene, Sprite, centres, draw, render

GREY = Background(texture="plain", base_colour="grey", pattern_colour="white")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene_at(0, index) for index in range(200)]


def make_sprite(shape: str = "circle", colour: str = "red", pattern: str = "plain", **placement: object) -> Sprite:
    values = {"size": 0.4, "start": (0.0, 0.0), **placement}
    return Sprite(appearance=Appearance(shape=shape, colour=colour, pattern=pattern), **values)


def sprite_masks(scene: Scene, frames: int, height: int, width: int) -> np.ndarray:
    return draw(scene, frames, height, width).sprite_masks


def test_a_scene_is_a_function_of_seed_and_index():
    assert scene_at(3, 7) == scene_at(3, 7)
    assert len({scene_at(seed, index) for seed in range(5) for index in range(20)}) == 100
    assert (render(scene_at(3, 7), 5, 32, 40) == render(scene_at(3, 7), 5, 32, 40)).all()


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (5, 48, 96), (17, 33, 47), (2, 96, 64)])
def test_video_and_masks_have_the_requested_size(frames, height, width, scenes):
    drawing = draw(scenes[0], frames, height, width)
    assert drawing.video.shape == (frames, height, width, 3)
    assert drawing.video.dtype == np.uint8
    assert drawing.sprite_masks.shape == (len(scenes[0].sprites), frames, height, width)


def test_a_shorter_video_is_a_prefix_of_a_longer_one(scenes):
    for scene in scenes[:10]:
        assert (render(scene, 5, 32, 32) == render(scene, 17, 32, 32)[:5]).all()


def test_resolution_does_not_change_the_scene(scenes):
    for scene in scenes[:20]:
        small = render(scene, 3, 48, 48).astype(float)
        large = render(scene, 3, 96, 96).astype(float).reshape(3, 48, 2, 48, 2, 3).mean(axis=(2, 4))
        assert np.abs(small - large).mean() < 4


def test_scenes_have_all_shapes_colours_patterns_and_textures(scenes):
    sprites = [sprite.appearance for scene in scenes for sprite in scene.sprites]
    assert {len(scene.sprites) for scene in scenes} == {1, 2, 3}
    assert {appearance.shape for appearance in sprites} == set(SHAPES)
    assert {appearance.colour for appearance in sprites} == set(SPRITE_COLOURS)
    assert {appearance.pattern for appearance in sprites} == set(PATTERNS)
    assert {scene.background.texture for scene in scenes} == set(TEXTURES)


def test_every_sprite_is_well_visible_in_the_first_frame_and_in_view_in_all(scenes):
    for scene in scenes:
        for mask, sprite in zip(sprite_masks(scene, 17, 48, 48), scene.sprites, strict=True):
            unoccluded = sprite_masks(Scene(background=GREY, sprites=(sprite,)), 17, 48, 48)[0]
            assert mask[0].sum() > 0.45 * unoccluded[0].sum() > 0
            centred = Scene(background=GREY, sprites=(replace(sprite, start=(0.0, 0.0)),))
            full = sprite_masks(centred, 1, 48, 48)
            assert unoccluded.sum(axis=(1, 2)).min() > 0.85 * full.sum()  # the border cuts off almost nothing


def test_masks_and_background_sum_to_one_in_every_pixel(scenes):
    for scene in scenes[:30]:
        drawing = draw(scene, 4, 40, 40)
        assert drawing.sprite_masks.min() >= 0
        np.testing.assert_allclose(drawing.sprite_masks.sum(axis=0) + drawing.background_mask, 1.0, atol=1e-5)


def test_sprites_in_front_occlude_those_behind():
    behind, front = make_sprite("square", "blue", size=0.5), make_sprite("square", "red", size=0.25)
    drawing = draw(Scene(background=GREY, sprites=(behind, front)), 1, 64, 64)
    assert tuple(drawing.video[0, 32, 32]) == SPRITE_COLOURS["red"]
    assert drawing.sprite_masks[:, 0, 32, 32].tolist() == [0.0, 1.0]
    alone = draw(Scene(background=GREY, sprites=(behind,)), 1, 64, 64).sprite_masks[0]
    assert drawing.sprite_masks[0].sum() == pytest.approx(alone.sum() - drawing.sprite_masks[1].sum(), rel=1e-3)


def test_coverage_is_accurate_to_less_than_a_pixel():
    circle = sprite_masks(Scene(background=GREY, sprites=(make_sprite(size=0.5),)), 1, 64, 64)
    square = sprite_masks(Scene(background=GREY, sprites=(make_sprite("square", size=0.5),)), 1, 64, 64)
    assert circle.sum() == pytest.approx(np.pi * (0.96 * 16) ** 2, rel=0.01)
    assert square.sum() == pytest.approx((2 * 0.84 * 16) ** 2, rel=0.01)


def test_shapes_are_distinguishable_at_the_smallest_size():
    masks = {
        shape: sprite_masks(Scene(background=GREY, sprites=(make_sprite(shape, size=0.3),)), 1, 32, 32)[0, 0]
        for shape in SHAPES
    }
    for a, b in itertools.combinations(masks.values(), 2):
        assert np.abs(a - b).sum() > 0.15 * max(a.sum(), b.sum())  # circle and square are the closest


def test_patterns_are_visible_and_leave_most_of_the_colour():
    for shape, pattern in itertools.product(SHAPES, ("stripes", "dots")):
        drawing = draw(Scene(background=GREY, sprites=(make_sprite(shape, "yellow", pattern, size=0.44),)), 1, 48, 48)
        inside = drawing.video[0][drawing.sprite_masks[0, 0] == 1].astype(int)
        brightness = inside.sum(axis=1) / sum(SPRITE_COLOURS["yellow"])
        unmarked = (brightness > (1 + MARK_SHADE) / 2).mean()
        assert 0.55 < unmarked < 0.9, (shape, pattern)


def test_sprites_move_at_their_velocity_and_bounce():
    sprite = make_sprite(start=(0.3, -0.2), velocity=(0.05, 0.0))
    track = centres(sprite, 17)
    np.testing.assert_allclose(track[:5, 0], 0.3 + 0.05 * np.arange(5), atol=1e-6)
    np.testing.assert_allclose(track[:, 1], -0.2, atol=1e-6)
    assert track[:, 0].max() <= 0.95 - sprite.size + 1e-6
    assert track[-1, 0] == pytest.approx(2 * 0.55 - (0.3 + 16 * 0.05))


def test_the_background_drifts_with_the_camera():
    still = Background(texture="grid", base_colour="black", pattern_colour="white")
    moving = Background(texture="grid", base_colour="black", pattern_colour="white", drift=(1 / 24, 0.0))
    assert (np.diff(render(Scene(background=still, sprites=()), 4, 48, 48).astype(int), axis=0) == 0).all()
    video = render(Scene(background=moving, sprites=()), 4, 48, 48).astype(int)  # a pixel a frame
    assert np.abs(video[1:, :, :-1] - video[:-1, :, 1:]).max() <= 1


def test_every_texture_looks_different():
    backgrounds = [Background(texture=name, base_colour="navy", pattern_colour="beige") for name in TEXTURES]
    images = [render(Scene(background=background, sprites=()), 1, 48, 48) for background in backgrounds]
    for a, b in itertools.combinations(images, 2):
        assert np.abs(a.astype(int) - b).mean() > 25


def test_colours_are_well_apart():
    for a, b in itertools.combinations(SPRITE_COLOURS.values(), 2):
        assert lab_distance(a, b) > 30
    for a, b in itertools.product(SPRITE_COLOURS.values(), BACKGROUND_COLOURS.values()):
        assert lab_distance(a, b) > 40
    assert all(len(contrasting_colours(colour)) >= 3 for colour in BACKGROUND_COLOURS)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_a_negative_seed_or_index_is_rejected(seed, index):
    with pytest.raises(InputError, check=lambda error: error.code == "out-of-range"):
        scene_at(seed, index)


@pytest.mark.parametrize("frames", [0, 10**6])
def test_a_video_without_frames_or_too_large_for_memory_is_rejected(frames, scenes):
    with pytest.raises(
        InputError, match=r"at least one frame .* at most", check=lambda error: error.code == "out-of-range"
    ):
        draw(scenes[0], frames, 32, 32)


def test_the_sandbox_and_its_command_do_not_import_torch():
    code = "import sys, kiwi.sandbox.export, kiwi.cli.sandbox; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
