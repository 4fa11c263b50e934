"""What this package computes for the golden cases of the two video autoencoders."""

from __future__ import annotations

from torch import Tensor

from kiwi.models.vae.formats import build_network
from kiwi.models.vae.tiling import Tiling
from kiwi.models.vae.wan import VideoVae
from kiwi.parity.golden import Case


def vae_wan21(case: Case) -> dict[str, Tensor]:
    """The Wan2.1 form: 8 x 8 pixels a latent."""
    return _vae(case)


def vae_wan22(case: Case) -> dict[str, Tensor]:
    """The Wan2.2 form: 16 x 16 pixels a latent, patches, shortcuts around levels."""
    return _vae(case)


def _vae(case: Case) -> dict[str, Tensor]:
    """From the original names to latents and videos, whole and tiled."""
    given, config = case.group("in/"), case.meta["config"]
    statistics = {name: given[name].tolist() for name in ("latents_mean", "latents_std")}
    vae = VideoVae(build_network(case.group("weights/"), statistics, case.name))
    video, latents = given["video"], given["z"]
    out = {
        "encode": vae.encode(video),
        "encode_first_frame_only": vae.encode(video[:, :, :1]),
        "encode_truncated_T": vae.posterior_of_whole_chunks(video[:, :, :4]).mode(),
        "decode_raw": vae.decode_unclamped(vae.denormalise(latents)),
    }
    vae.tiling = Tiling(size=tuple(config["tile_size"]), stride=tuple(config["tile_stride"]))
    out |= {"encode_tiled": vae.encode(video), "decode_tiled": vae.decode(latents)}
    return out
