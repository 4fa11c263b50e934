"""Position ids of Qwen-VL's multimodal rotary embedding: one axis for time, one for rows, one for columns.

They are computed here because versions of transformers disagree. In the published models, text after a video starts one
after the largest position of the video, time included; in newer versions, one after its spatial extent. S tokens.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

IMAGE, VIDEO = 1, 2
"""Token types of images and videos; text is 0."""


def position_ids(types_S: Tensor, grids: dict[int, Iterator[Tensor]], merge_size: int, step: int) -> Tensor:
    """Compute the position ids (3, S) of one sample without padding.

    Each text token advances all three axes by one. The tokens of an image or video are at offsets (time, row, column)
    in their merged grid; the next token starts one after the largest of their positions.

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
