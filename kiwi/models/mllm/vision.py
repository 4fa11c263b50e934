"""The vision tower's features of a prompt's images and videos, computed or cached, and the position ids of its tokens.

B samples, S tokens, V visual tokens of the batch, N of one image or video, M the MLLM's width. L levels: level 0
replaces word embeddings; the others are added to the hidden states after the first language layers (Qwen3-VL's
DeepStack, arXiv 2406.04334; none in Qwen2.5-VL).
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kiwi.encoded import IMAGE, VIDEO
from kiwi.errors import InputError


class PromptVisionFeatures(NamedTuple):
    """Features (L, N, M) of the images and videos of a batch of prompts, in the order of their tokens."""

    images: tuple[Tensor, ...] = ()
    """Features of one-frame sources and of references; a sample's source comes before its references."""
    videos: tuple[Tensor, ...] = ()

    def in_token_order(self, token_types_BS: Tensor) -> Tensor:
        """Arrange the features of all visual tokens sample by sample, (L, V, M).

        Args:
            token_types_BS: 0 text, 1 image, 2 video.

        Raises:
            InputError: if the numbers of visual tokens and features differ.
        """
        types_V = token_types_BS[token_types_BS > 0]
        by_type = {IMAGE: self.images, VIDEO: self.videos}
        got = {kind: sum(features.shape[1] for features in group) for kind, group in by_type.items()}
        expected = {kind: int((types_V == kind).sum()) for kind in by_type}
        if got != expected:
            raise InputError(
                "the vision features do not belong to this prompt",
                code="mismatched-vision-features",
                got=f"features for {got[IMAGE]} image and {got[VIDEO]} video tokens",
                expected=f"{expected[IMAGE]} and {expected[VIDEO]}",
                fix="compute the features with the same MLLM and limits as the prompt",
            )
        first_LNM = (self.images + self.videos)[0]
        features_LVM = first_LNM.new_empty(len(first_LNM), len(types_V), first_LNM.shape[-1])
        for kind, group in by_type.items():
            if group:
                features_LVM[:, types_V == kind] = torch.cat(group, dim=1)
        return features_LVM


def encode_vision(
    tower: Any, pixels: Tensor | None, grids_P3: Tensor | None, cached: tuple[Tensor | None, ...] = ()
) -> tuple[Tensor, ...]:
    """Compute the features (L, N, M) of P images or videos, except for cached ones.

    This is exact, because the features of an image do not depend on the rest of the batch.

    Args:
        tower: vision model of transformers.
        pixels: patches of the C images without cached features, from the processor; None if there are none.
        grids_P3: grids (frames, rows, columns) of all images, in patches.
        cached: features of each image, or None where they must be computed; empty if none are cached.
    """
    if grids_P3 is None:
        return ()
    cached = cached or (None,) * len(grids_P3)
    computed = iter(())
    if pixels is not None:
        grids_C3 = grids_P3[[index for index, features in enumerate(cached) if features is None]]
        # Not through `get_image_features`, whose return value differs between versions of transformers.
        output = tower(pixels.type(tower.dtype), grid_thw=grids_C3)
        features_LVM = torch.stack([output.pooler_output, *getattr(output, "deepstack_features", ())])
        sizes = (grids_C3.prod(dim=1) // tower.spatial_merge_size**2).tolist()
        # Clones, so that storing the features of one image does not keep the memory of the whole batch.
        computed = iter([features.clone() for features in features_LVM.split(sizes, dim=1)])
    return tuple(next(computed) if features is None else features for features in cached)


def compute_positions(types_S: Tensor, grids: dict[int, Iterator[Tensor]], merge_size: int, step: int) -> Tensor:
    """Compute the position ids (3, S) of one sample without padding.

    There is one axis for time, one for rows, one for columns. Each text token advances all three by one.
    The tokens of an image or video are at offsets (time, row, column) in their merged grid; the next token starts one
    after the largest of their positions. Not left to transformers, whose newer versions start one after the spatial
    extent only, unlike the published models.

    Args:
        types_S: 0 text, 1 image, 2 video; each run of 1 or 2 is one image or video.
        grids: by type, iterators over the grids (frames, rows, columns) in vision patches, in the order of the runs.
        merge_size: number of patches along each side that are merged into one token.
        step: number of time positions between consecutive temporal patches of a video.
    """
    parts: list[Tensor] = []
    start = 0
    for kind, run in groupby(types_S.tolist()):
        if kind == 0:
            offsets = torch.arange(len(list(run))).expand(3, -1)
        else:
            frames, rows, columns = next(grids[kind]).tolist()
            axes = (torch.arange(frames) * step, torch.arange(rows // merge_size), torch.arange(columns // merge_size))
            offsets = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        parts.append(start + offsets)
        start = int(parts[-1].max()) + 1
    return torch.cat(parts, dim=1).to(types_S.device)


def grids_per_temporal_patch(grids_V3: Tensor) -> Tensor:
    """Split each video's grid into grids of one temporal patch, which are separate spans in Qwen3-VL."""
    single = grids_V3.repeat_interleave(grids_V3[:, 0], dim=0).clone()
    single[:, 0] = 1
    return single
