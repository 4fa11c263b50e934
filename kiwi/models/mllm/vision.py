"""The vision tower's features of a prompt's images and videos: computed now, or taken from a cache.

B samples, S tokens, V visual tokens of the batch, N of one image or video, M the MLLM's width. L levels: the features
that take the place of word embeddings, then those that are added to the hidden states after the first language layers
(Qwen3-VL's DeepStack, arXiv 2406.04334; none in Qwen2.5-VL).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kiwi.errors import InputError
from kiwi.models.mllm.positions import IMAGE, VIDEO


class PromptVisionFeatures(NamedTuple):
    """Features (L, N, M) of a prompt's images and videos, in the order in which its samples show them."""

    images: tuple[Tensor, ...] = ()
    """Sources of one frame and references; a sample's source comes before its references."""
    videos: tuple[Tensor, ...] = ()

    def in_token_order(self, token_types_BS: Tensor) -> Tensor:
        """The features of all visual tokens, sample by sample, (L, V, M).

        Args:
            token_types_BS: 0 text, 1 image, 2 video.

        Raises:
            InputError: the numbers of visual tokens and of features differ.
        """
        types_V = token_types_BS[token_types_BS > 0]
        by_type = {IMAGE: self.images, VIDEO: self.videos}
        got = {kind: sum(features.shape[1] for features in group) for kind, group in by_type.items()}
        expected = {kind: int((types_V == kind).sum()) for kind in by_type}
        if got != expected:
            raise InputError(
                "the vision features do not belong to this prompt",
                code="mismatched-vision-features",
                got=f"features of {got[IMAGE]} image and {got[VIDEO]} video tokens",
                expected=f"{expected[IMAGE]} and {expected[VIDEO]}",
                fix="compute them with the MLLM and the limits that made the prompt",
            )
        levels, _, width = (self.images + self.videos)[0].shape
        features_LVM = (self.images + self.videos)[0].new_empty(levels, len(types_V), width)
        for kind, group in by_type.items():
            if group:
                features_LVM[:, types_V == kind] = torch.cat(group, dim=1)
        return features_LVM


def encode_vision(
    tower: Any, pixels: Tensor | None, grids_P3: Tensor | None, cached: tuple[Tensor | None, ...] = ()
) -> tuple[Tensor, ...]:
    """Features (L, N, M) of each of P images or videos; those that are cached are not computed again.

    This is exact, because features do not depend on the other images of the batch.

    Args:
        tower: transformers' vision model.
        pixels: patches of the images that are not cached, from the processor; None if there are none.
        grids_P3: grids (frames, rows, columns) in patches, of all images.
        cached: features of all images, None for each that is to be encoded; empty if nothing is cached.
    """
    if grids_P3 is None:
        return ()
    cached = cached or (None,) * len(grids_P3)
    new = iter(())
    if pixels is not None:
        new_N3 = grids_P3[[index for index, features in enumerate(cached) if features is None]]
        # The tower itself, because the library's `get_image_features` returns other things from version to version.
        output = tower(pixels.type(tower.dtype), grid_thw=new_N3)
        features_LVM = torch.stack([output.pooler_output, *getattr(output, "deepstack_features", ())])
        sizes = (new_N3.prod(dim=1) // tower.spatial_merge_size**2).tolist()
        # Copies, so that keeping the features of one image does not hold the memory of its batch.
        new = iter([features.clone() for features in features_LVM.split(sizes, dim=1)])
    return tuple(next(new) if features is None else features for features in cached)
