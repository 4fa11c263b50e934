import pytest
import torch

from kiwi.errors import SpecError
from kiwi.models.vae.tiling import NoTiling, Tiling
from kiwi.models.vae.wan import NewVae
from kiwi.spec import from_dict, override, to_dict


def enlarged(latents, factor):
    return latents.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


@pytest.mark.parametrize("spec", [NoTiling(), Tiling(size=(9, 20), stride=(1, 7))])
def test_one_tile_that_covers_everything_gives_identical_results(spec):
    video, latents = torch.randn(2, 3, 5, 18, 24), torch.randn(2, 4, 2, 9, 12)
    mix = torch.randn(24, 24)
    assert torch.equal(spec.run(lambda x: (x @ mix)[..., ::2, ::2], video, 2, 1), (video @ mix)[..., ::2, ::2])
    assert torch.equal(
        spec.run(lambda x: enlarged(x @ mix[:12, :12], 4), latents, 1, 4), enlarged(latents @ mix[:12, :12], 4)
    )


@pytest.mark.parametrize(("size", "stride"), [((3, 4), (2, 2)), ((4, 4), (4, 4)), ((5, 2), (1, 1)), ((30, 3), (15, 3))])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (7, 11), (13, 3)])
def test_a_pointwise_coder_gives_the_same_result_with_and_without_tiles(size, stride, height, width):
    spec, latents = Tiling(size=size, stride=stride), torch.randn(1, 2, 3, height, width)
    whole = enlarged(latents, 3)
    assert torch.allclose(spec.run(lambda x: enlarged(x, 3), latents, 1, 3), whole, atol=1e-6)
    assert torch.allclose(spec.run(lambda x: x[..., ::3, ::3], whole, 3, 1), latents, atol=1e-6)


def test_tiles_start_at_multiples_of_the_stride_until_one_reaches_the_border():
    tiles = []
    video = torch.arange(14.0).expand(1, 1, 1, 10, 14)

    def coder(tile):
        tiles.append((int(tile[..., 0].max()), *tile.shape[-2:]))
        return tile[..., ::2, ::2]

    Tiling(size=(5, 3), stride=(2, 2)).run(coder, video, 2, 1)
    # 7 latents wide: 0-3, 2-5, 4-7; the next start, 6, would lie within the last tile. 5 latents high: one tile.
    assert tiles == [(0, 10, 6), (4, 10, 6), (8, 10, 6)]


def numbered():
    """A coder that fills the n-th tile with n."""
    count = iter(range(100))
    return lambda tile: enlarged(torch.full_like(tile, float(next(count))), 2)


def test_overlaps_are_blended_by_linear_ramps_in_output_units():
    strip = Tiling(size=(1, 2), stride=(1, 1)).run(numbered(), torch.zeros(1, 1, 1, 1, 3), 1, 2)[0, 0, 0, 0]
    # Tiles 0 and 1 share pixels 2 and 3, with weights (1, 1/2) and (1/2, 1).
    assert torch.allclose(strip, torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))


def test_where_both_axes_are_blended_the_smaller_weight_is_used():
    square = Tiling(size=(2, 2), stride=(1, 1)).run(numbered(), torch.zeros(1, 1, 1, 3, 3), 1, 2)[0, 0, 0]
    # Pixel (2, 2): weights 1, 1/2, 1/2, 1/2 of tiles 0 to 3; products of the axes would give 1, 1/2, 1/2, 1/4.
    assert square[2, 2] == pytest.approx((0 * 1 + 1 * 0.5 + 2 * 0.5 + 3 * 0.5) / 2.5)
    assert square[2, 3] == pytest.approx((0 * 0.5 + 1 * 1 + 2 * 0.5 + 3 * 0.5) / 2.5)


def test_tiles_without_overlap_are_concatenated():
    strip = Tiling(size=(1, 1), stride=(1, 1)).run(numbered(), torch.zeros(1, 1, 1, 1, 3), 1, 2)[0, 0, 0, 0]
    assert strip.tolist() == [0, 0, 1, 1, 2, 2]


def test_sums_are_exact_at_bfloat16():
    latents = torch.randn(1, 1, 1, 8, 8).bfloat16()
    decoded = Tiling(size=(4, 4), stride=(2, 2)).run(lambda x: enlarged(x, 2), latents, 1, 2)
    assert decoded.dtype == torch.bfloat16
    assert torch.equal(decoded, enlarged(latents, 2))


@pytest.mark.parametrize(("size", "stride"), [((4, 4), (0, 2)), ((4, 4), (2, 5)), ((0, 4), (0, 2)), ((4, 4), (2, -1))])
def test_tiles_that_leave_gaps_are_rejected(size, stride):
    with pytest.raises(SpecError, match="0 < stride <= size"):
        Tiling(size=size, stride=stride)


def test_the_defaults_are_the_published_ones_and_a_name_is_enough():
    assert (Tiling().size, Tiling().stride) == ((30, 52), (15, 26))
    spec = override(NewVae(), {"tiling": "Tiling", "tiling.stride": [10, 20]})
    assert spec.tiling == Tiling(stride=(10, 20))
    assert from_dict(NewVae, to_dict(spec)) == spec
