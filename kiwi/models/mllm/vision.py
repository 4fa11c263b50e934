"""The vision tower's features of a prompt's images and videos, computed or taken from a cache.

B samples, S tokens, V visual tokens of the batch, N of one image or video, M the MLLM's width. L levels: level 0
replaces word embeddings; the others are added to the hidden states after the first language layers (Qwen3-VL's
DeepStack, arXiv 2406.04334; none in Qwen2.5-VL).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kiwi.errors import InputError
from kiwi.models.mllm.positions import IMAGE, VIDEO


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
                expected=f"features for {expected[IMAGE]} image and {expected[VIDEO]} video tokens",
                fix="compute the features with the same MLLM and limits as the prompt",
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
