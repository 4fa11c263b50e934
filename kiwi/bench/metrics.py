"""Metrics beside the judge, of edited videos against their sources: no opinion, and no substitute for one.

The one module of the room that needs torch; the command imports it where metrics are asked for. Each metric is named
with what computed it. PSNR, SSIM and LPIPS are of the edit against the source, of the same size and as many frames as
both have: they tell how much was changed, not whether it should have been.
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

from kiwi import console
from kiwi.bench.case import Case
from kiwi.errors import CheckpointError, InputError, KiwiError
from kiwi.evaluation.fidelity import edit_metrics
from kiwi.evaluation.perceptual import Lpips, NoPerceptual, PerceptualMaps
from kiwi.media.image import read_image, resize
from kiwi.media.video import read_video
from kiwi.statistics.intervals import mean_of
from kiwi.tables import Table

BATCH = 32
"""Frames that an encoder sees at once."""

LEAST_SIDE = 32
"""Pixels: what LPIPS needs; the window of SSIM has 11."""

NETS = ("alex", "vgg", "squeeze")
"""Of LPIPS."""

NOTHING = NoPerceptual().build()
"""No perceptual distance."""

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


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is computed beside PSNR, SSIM and flicker.

    Args:
        encoders: models that see the edit.
        distances: perceptual ones, of the edit to its source.
        note: what computed those.
        device: to compare frames on.
    """

    encoders: Sequence[Encoder] = ()
    distances: PerceptualMaps = NOTHING
    note: str = ""
    device: str | torch.device = "cpu"


@torch.no_grad()
def measure(case: Case, edited: Path, measures: Measures) -> Values:
    """Metrics of one edited video.

    Args:
        case: the item.
        edited: its video.
        measures: what is computed beside the basic ones.

    Returns:
        psnr (dB), ssim and perceptual distances to the source; flicker, the mean change of the edit's change from frame
        to frame in grey levels; of each encoder, frames (similarity of neighbours, 1 for a still), and reference (to
        the reference picture) or words (to the instruction), where there are any.

    Raises:
        InputError: frames that are too small.
    """
    source, made = (read_video(path).frames_FHWC for path in (case.source, edited))
    frames, (height, width) = min(len(source), len(made)), source.shape[1:3]
    source, made = source[:frames], resize(made[:frames], height, width)
    if min(height, width) < LEAST_SIDE:
        raise InputError("frames are too small to compare", got=f"{width}x{height}", wanted=f"{LEAST_SIDE} a side")
    found = edit_metrics(made, source, None, measures.distances, measures.device)
    if frames > 1:
        found["flicker"] = float(
            np.mean([_flicker(made[at : at + 2], source[at : at + 2]) for at in range(frames - 1)])
        )
    for encoder in measures.encoders:
        features = encoder.see(made)
        if frames > 1:
            found[f"{encoder.name} frames"] = float(cosine_similarity(features[1:], features[:-1]).mean())
        if case.reference is not None:
            picture = encoder.see(read_image(case.reference)[None])
            found[f"{encoder.name} reference"] = float(cosine_similarity(features, picture).mean())
        if encoder.read is not None:
            found[f"{encoder.name} words"] = float(cosine_similarity(features, encoder.read(case.instruction)).mean())
    return found


def _flicker(made: np.ndarray, source: np.ndarray) -> float:
    """Of two frames, (2, H, W, C)."""
    change = (made.astype(np.float32) - source).mean(-1)
    return float(np.abs(change[1] - change[0]).mean())


def measure_all(cases: Sequence[Case], edited: Mapping[str, Path], measures: Measures) -> Table:
    """A row a metric: its mean over the items that have it, by category and over categories."""
    found: dict[str, dict[str, list[float]]] = {}
    categories = list(dict.fromkeys(case.category for case in cases))
    for case in console.progress([case for case in cases if edited[case.id].is_file()], "metrics"):
        try:
            values = measure(case, edited[case.id], measures)
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
        "psnr (dB) and ssim: edit against source (torchmetrics), how much was changed"
        f"{measures.note}; flicker: grey levels by which "
        "the change changes from frame to frame. Means with 95% intervals; last column: the mean over categories.",
    )


def load_measures(names: Sequence[str], device: str | torch.device) -> Measures:
    """What is named: basic, lpips (=alex, vgg or squeeze), clip=FOLDER, dino=FOLDER.

    Raises:
        InputError: something else, or a network whose weights are not there.
        CheckpointError: a folder that cannot be loaded.
    """
    encoders, perceptual = [], None
    for name in names:
        kind, _, value = name.partition("=")
        if kind == "lpips":
            if (net := value or "alex") not in NETS:
                raise InputError(f"LPIPS has no network {net!r}", wanted=", ".join(NETS))
            perceptual = Lpips(net=net)  # type: ignore[arg-type]
        elif name != "basic":
            encoders.append(load_encoder(kind, value, device))
    if perceptual is None:
        return Measures(encoders=encoders, device=device)
    note = f"; lpips: LPIPS 0.1 to the source by {perceptual.net} (lpips)"
    return Measures(encoders=encoders, distances=perceptual.build(device), note=note, device=device)


def load_encoder(kind: str, folder: str, device: str | torch.device) -> Encoder:
    """An encoder from a model folder of transformers or a hub id.

    Raises:
        InputError: another kind than clip or dino.
        CheckpointError: a folder that cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    if kind not in ("clip", "dino"):
        raise InputError(f"there is no such metric {kind!r}", wanted="basic, lpips, clip=FOLDER or dino=FOLDER")
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
