"""Position ids of Qwen-VL's multimodal rotary embedding: one axis for time, one for rows, one for columns.

They are computed here because versions of the library disagree: text after a video starts one after the *largest*
position of the video in the published models (time included), in newer ones one after its spatial extent. S tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

IMAGE, VIDEO = 1, 2
"""Token types; text is 0."""


def position_ids(types_S: Tensor, grids: dict[int, Iterator[Tensor]], merge_size: int, step: int) -> Tensor:
    """Position ids (3, S) of one sample without padding.

    Text advances all three axes together. The tokens of an image or video are at offsets (time, row, column) of their
    merged grid; what follows starts one after the largest of them.

    Args:
        types_S: 0 text, 1 image, 2 video; each run of 1 or 2 is one grid.
        grids: by type, the grids (frames, rows, columns) in vision patches, in the order of their runs; consumed.
        merge_size: patches that a token merges along each side.
        step: time positions between two patches of a video.
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
    """Split the grids of videos into grids of one frame, for temporal patches in separate spans (Qwen3-VL)."""
    single = grids_V3.repeat_interleave(grids_V3[:, 0], dim=0).clone()
    single[:, 0] = 1
    return single
