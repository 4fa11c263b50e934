"""Metrics beside the judge, of edited videos against their sources: no opinion, and no substitute for one.

The one module of the room that needs torch; the command imports it where metrics are asked for. Each metric is named
with what computed it. PSNR and SSIM are of the edit against the source, of the same size and as many frames as both
have: they tell how much was changed, not whether it should have been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from kiwi import console
from kiwi.bench.case import Case
from kiwi.errors import CheckpointError, InputError, KiwiError
from kiwi.media.image import read_image, resize
from kiwi.media.video import read_video
from kiwi.statistics.intervals import mean_of
from kiwi.tables import Table

BATCH = 32
"""Frames that an encoder sees at once."""

CAP = 60.0
"""dB, of what is equal to the last bit."""

Values = Mapping[str, float]
"""Metrics of an item by name."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An image model whose features are compared, CLIP or DINO.

    Args:
        name: "CLIP" or "DINO", with the folder's name.
        see: frames, FHWC uint8, to unit features (F, D).
        read: a text to a unit feature (D), of CLIP; none for DINO.
    """

    name: str
    see: Callable[[np.ndarray], Tensor]
    read: Callable[[str], Tensor] | None


@torch.no_grad()
def measure(case: Case, edited: Path, encoders: Sequence[Encoder] = ()) -> Values:
    """Metrics of one edited video.

    Args:
        case: the item.
        edited: its video.
        encoders: models that see it too.

    Returns:
        psnr (dB) and ssim to the source; flicker, the mean change of the edit's change from frame to frame in grey
        levels; of each encoder, frames (similarity of neighbours, 1 for a still), and reference (to the reference
        picture) or words (to the instruction), where there are any.
    """
    source, made = (read_video(path).frames_FHWC for path in (case.source, edited))
    frames, (height, width) = min(len(source), len(made)), source.shape[1:3]
    source, made = source[:frames], resize(made[:frames], height, width)
    a, b = (torch.from_numpy(clip.transpose(0, 3, 1, 2).copy()).float() for clip in (made, source))
    found = {"psnr": min(CAP, float(peak_signal_noise_ratio(a, b, data_range=255.0)))}
    if min(height, width) >= 11:  # the window of SSIM
        ssim = structural_similarity_index_measure(a, b, data_range=255.0)
        assert isinstance(ssim, Tensor)
        found["ssim"] = float(ssim)
    if frames > 1:
        found["flicker"] = float((a - b).mean(1).diff(dim=0).abs().mean())
    for encoder in encoders:
        features = encoder.see(made)
        if frames > 1:
            found[f"{encoder.name} frames"] = float(cosine_similarity(features[1:], features[:-1]).mean())
        if case.reference is not None:
            picture = encoder.see(read_image(case.reference)[None])
            found[f"{encoder.name} reference"] = float(cosine_similarity(features, picture).mean())
        if encoder.read is not None:
            found[f"{encoder.name} words"] = float(cosine_similarity(features, encoder.read(case.instruction)).mean())
    return found


def measure_all(cases: Sequence[Case], edited: Mapping[str, Path], encoders: Sequence[Encoder] = ()) -> Table:
    """A row a metric: its mean over the items that have it, by category and over categories."""
    found: dict[str, dict[str, list[float]]] = {}
    categories = list(dict.fromkeys(case.category for case in cases))
    for case in console.progress([case for case in cases if edited[case.id].is_file()], "metrics"):
        try:
            values = measure(case, edited[case.id], encoders)
        except KiwiError as problem:
            console.note(f"no metrics of {case.id}: {problem}")
            continue
        for name, value in values.items():
            found.setdefault(name, {}).setdefault(case.category, []).append(value)
    rows = []
    for name, groups in found.items():
        cells = [str(mean_of([groups[category]])) if category in groups else "-" for category in categories]
        rows.append((name, sum(map(len, groups.values())), *cells, str(mean_of(list(groups.values())))))
    return Table(
        "Computed beside the judge",
        ("metric", "items", *categories, "mean"),
        rows,
        "psnr (dB) and ssim: edit against source (torchmetrics), how much was changed; flicker: grey levels by which "
        "the change changes from frame to frame. Means with 95% intervals; last column: the mean over categories.",
    )


def load_encoder(kind: str, folder: str, device: str | torch.device) -> Encoder:
    """An encoder from a model folder of transformers or a hub id.

    Raises:
        InputError: another kind than clip or dino.
        CheckpointError: a folder that cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    if kind not in ("clip", "dino"):
        raise InputError(f"there is no such metric {kind!r}", wanted="clip=FOLDER or dino=FOLDER")
    try:
        model: Any = AutoModel.from_pretrained(folder, use_safetensors=True).to(device).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder) if kind == "clip" else None
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{folder} cannot be loaded as {kind}", got=str(problem).splitlines()[0]) from None

    def see(frames_FHWC: np.ndarray) -> Tensor:
        found = []
        for start in range(0, len(frames_FHWC), BATCH):
            pixels = processor(images=list(frames_FHWC[start : start + BATCH]), return_tensors="pt").to(device)
            found.append(_features(model.get_image_features(**pixels) if kind == "clip" else model(**pixels)))
        return torch.cat(found)

    def read(text: str) -> Tensor:
        assert tokenizer is not None
        return _features(model.get_text_features(**tokenizer(text, return_tensors="pt", truncation=True).to(device)))

    name = f"{'CLIP' if kind == 'clip' else 'DINO'} ({Path(folder).name})"
    return Encoder(name=name, see=see, read=read if kind == "clip" else None)


def _features(output: Any) -> Tensor:
    """Of what versions of transformers return: features, or an output that holds them."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features.float().cpu()
