"""What the MLLM's vision tower saw of a prompt's pictures: looked at now, or known from before.

B samples, S tokens, V visual tokens of the batch, N of one picture, M the MLLM's width. L levels: the features that
stand in the place of words, then those that join the hidden states after the first language layers (Qwen3-VL's
DeepStack, arXiv 2406.04334; none in Qwen2.5-VL).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kiwi.errors import InputError
from kiwi.models.mllm.positions import IMAGE, VIDEO


class PromptVisionFeatures(NamedTuple):
    """Features (L, N, M) of pictures, in the order in which a prompt's samples show them."""

    images: tuple[Tensor, ...] = ()
    """Sources of one frame and references; a sample's source comes before its references."""
    videos: tuple[Tensor, ...] = ()

    def in_order(self, token_types_BS: Tensor) -> Tensor:
        """The features of all visual tokens, sample by sample, (L, V, M).

        Args:
            token_types_BS: 0 text, 1 image, 2 video.

        Raises:
            InputError: there are more or fewer visual tokens than features.
        """
        types_V = token_types_BS[token_types_BS > 0]
        by_type = {IMAGE: self.images, VIDEO: self.videos}
        got = {kind: sum(one.shape[1] for one in pictures) for kind, pictures in by_type.items()}
        wanted = {kind: int((types_V == kind).sum()) for kind in by_type}
        if got != wanted:
            raise InputError(
                "the vision features are not those of this prompt",
                got=f"features of {got[IMAGE]} image and {got[VIDEO]} video tokens",
                wanted=f"{wanted[IMAGE]} and {wanted[VIDEO]}",
                fix="compute them with the MLLM and the limits that made the prompt",
            )
        levels, _, width = (self.images + self.videos)[0].shape
        features_LVM = (self.images + self.videos)[0].new_empty(levels, len(types_V), width)
        for kind, pictures in by_type.items():
            if pictures:
                features_LVM[:, types_V == kind] = torch.cat(pictures, dim=1)
        return features_LVM


def encode_vision(
    tower: Any, pixels: Tensor | None, grids_P3: Tensor | None, seen: tuple[Tensor | None, ...] = ()
) -> tuple[Tensor, ...]:
    """Features (L, N, M) of each picture or video.

    A picture's features do not depend on the others of its batch, so that those seen before are passed by.

    Args:
        tower: transformers' vision model.
        pixels: patches of the pictures not seen yet, as the processor leaves them; None without any.
        grids_P3: grids (frames, rows, columns) in patches, of all pictures.
        seen: features of all, None for each that is to be looked at; or nothing, if none was seen.
    """
    if grids_P3 is None:
        return ()
    seen = seen or (None,) * len(grids_P3)
    fresh = iter(())
    if pixels is not None:
        new_N3 = grids_P3[[index for index, features in enumerate(seen) if features is None]]
        # The tower itself: what the library's `get_image_features` makes of its outputs changes from version to
        # version.
        output = tower(pixels.type(tower.dtype), grid_thw=new_N3)
        features_LVM = torch.stack([output.pooler_output, *getattr(output, "deepstack_features", ())])
        sizes = (new_N3.prod(dim=1) // tower.spatial_merge_size**2).tolist()
        # Copies, so that keeping one picture's does not hold the memory of its batch.
        fresh = iter([one.clone() for one in features_LVM.split(sizes, dim=1)])
    return tuple(next(fresh) if features is None else features for features in seen)
