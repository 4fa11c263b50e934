"""Metrics of edited videos beside the judge's scores, which they cannot replace.

The only module of `kiwi.bench` that needs torch; imported only if metrics are asked for. Each metric is named after
what computes it. PSNR, SSIM and LPIPS compare the edit with the source, resized to its size, over the frames that both
have: they measure how much was changed, not whether it should have been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from kiwi import console
from kiwi.bench.suites import BenchmarkItem
from kiwi.encoded import Pixels
from kiwi.errors import CheckpointError, InputError, KiwiError
from kiwi.evaluation.fidelity import edit_metrics
from kiwi.evaluation.perceptual import Lpips, NoPerceptual, PerceptualMaps
from kiwi.media.image import read_image, resize
from kiwi.media.video import read_video
from kiwi.models.device import resolve_device
from kiwi.spec import from_dict
from kiwi.statistics.intervals import bootstrap_mean
from kiwi.tables import Table

BATCH = 32
"""Frames that an encoder processes at once."""

MIN_SIDE = 32
"""Height and width in pixels that LPIPS needs; the window of SSIM has 11."""

_NO_DISTANCES = NoPerceptual().build()


class Encoder:
    """An image model of transformers whose features are compared.

    Args:
        kind: "clip" or "dino".
        folder: model folder or hub id.
        device: to run on.

    Attributes:
        name: "CLIP" or "DINO", with the folder's name.

    Raises:
        InputError: another kind.
        CheckpointError: a folder that cannot be loaded.
    """

    def __init__(self, kind: str, folder: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        if kind not in ("clip", "dino"):
            expected = "basic, lpips, clip=FOLDER or dino=FOLDER"
            raise InputError(f"there is no metric {kind!r}", code="unknown-metric", expected=expected)
        try:
            self.model: Any = AutoModel.from_pretrained(folder, use_safetensors=True).to(device).eval()
            self.processor = AutoImageProcessor.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder) if kind == "clip" else None
        except (OSError, ValueError) as problem:
            got = str(problem).splitlines()[0]
            raise CheckpointError(f"{folder} cannot be loaded as {kind}", code="unreadable-model", got=got) from None
        self.name, self.device = f"{kind.upper()} ({Path(folder).name})", device

    def encode_frames(self, frames_FHWC: Pixels) -> Tensor:
        """Features (F, D) of frames."""
        encode = self.model if self.tokenizer is None else self.model.get_image_features
        features = []
        for start in range(0, len(frames_FHWC), BATCH):
            pixels = self.processor(images=list(frames_FHWC[start : start + BATCH]), return_tensors="pt")
            features.append(_features(encode(**pixels.to(self.device))))
        return torch.cat(features)

    def encode_text(self, text: str) -> Tensor | None:
        """The feature (1, D) of a text; None if the model has no text encoder."""
        if self.tokenizer is None:
            return None
        tokens = self.tokenizer(text, return_tensors="pt", truncation=True)
        return _features(self.model.get_text_features(**tokens.to(self.device)))


@dataclass(frozen=True, kw_only=True)
class VideoMetrics:
    """PSNR, SSIM and flicker, and the metrics of pretrained models.

    Args:
        encoders: for similarities of features.
        distances: perceptual ones, from the edit to its source.
        note: what computes those, for the table.
        device: to compare frames on.
    """

    encoders: Sequence[Encoder] = ()
    distances: PerceptualMaps = _NO_DISTANCES
    note: str = ""
    device: str = "cpu"

    @classmethod
    def load(cls, names: Sequence[str], device: str | None = None) -> Self:
        """Metrics by name: basic, lpips (=alex, vgg or squeeze), clip=FOLDER, dino=FOLDER.

        Raises:
            InputError: an unknown name, or a network whose weights are not available.
            CheckpointError: a folder that cannot be loaded.
        """
        device = resolve_device(device)
        encoders, lpips = [], None
        for name in names:
            kind, _, value = name.partition("=")
            if kind == "lpips":
                lpips = from_dict(Lpips, {"net": value} if value else {}, "--metrics lpips")
            elif name != "basic":
                encoders.append(Encoder(kind, value, device))
        if lpips is None:
            return cls(encoders=encoders, device=device)
        note = f"; lpips: LPIPS 0.1 to the source with {lpips.net} (lpips)"
        return cls(encoders=encoders, distances=lpips.build(device), note=note, device=device)

    @torch.no_grad()
    def compute(self, item: BenchmarkItem, edited: Path) -> dict[str, float]:
        """Metrics of one edited video, by name.

        Returns:
            psnr (dB), ssim and perceptual distances to the source; flicker, the mean difference in grey levels between
            the changes of neighbouring frames; of each encoder, frames (similarity of neighbouring frames, 1 for a
            still), and reference (to the reference image) and words (to the instruction) where there are any.

        Raises:
            InputError: frames that are too small.
            MediaError: a video that cannot be read.
        """
        source_FHWC, edited_FHWC = (read_video(path).frames_FHWC for path in (item.source, edited))
        frames, (height, width) = min(len(source_FHWC), len(edited_FHWC)), source_FHWC.shape[1:3]
        if min(height, width) < MIN_SIDE:
            got, expected = f"{width}x{height}", f"at least {MIN_SIDE}x{MIN_SIDE}"
            raise InputError("the frames are too small to compare", code="too-small", got=got, expected=expected)
        source_FHWC, edited_FHWC = source_FHWC[:frames], resize(edited_FHWC[:frames], height, width)
        values = edit_metrics(edited_FHWC, source_FHWC, None, self.distances, self.device)
        if frames > 1:
            values["flicker"] = _flicker(edited_FHWC, source_FHWC)
        for encoder in self.encoders:
            features_FD = encoder.encode_frames(edited_FHWC)
            pairs = {}
            if frames > 1:
                pairs["frames"] = features_FD[1:], features_FD[:-1]
            if item.reference is not None:
                pairs["reference"] = features_FD, encoder.encode_frames(read_image(item.reference)[None])
            if (text_1D := encoder.encode_text(item.instruction)) is not None:
                pairs["words"] = features_FD, text_1D
            for name, (a, b) in pairs.items():
                values[f"{encoder.name} {name}"] = float(cosine_similarity(a, b).mean())
        return values

    def table(self, items: Sequence[BenchmarkItem], edited: Mapping[str, Path]) -> Table:
        """A row for each metric: its means over the items that have it, by category and over categories."""
        values: dict[str, dict[str, list[float]]] = {}
        categories = list(dict.fromkeys(item.category for item in items))
        for item in console.progress([item for item in items if edited[item.id].is_file()], "metrics"):
            try:
                metrics = self.compute(item, edited[item.id])
            except KiwiError as problem:
                console.note(f"no metrics of {item.id}: {problem}")
                continue
            for name, value in metrics.items():
                values.setdefault(name, {}).setdefault(item.category, []).append(value)
        rows = []
        for name, groups in values.items():
            cells = [str(bootstrap_mean([groups[key]])) if key in groups else "-" for key in categories]
            rows.append((name, sum(map(len, groups.values())), *cells, str(bootstrap_mean(list(groups.values())))))
        return Table(
            "Metrics beside the judge's scores",
            ("metric", "items", *categories, "mean"),
            rows,
            f"psnr (dB) and ssim: edit against source (torchmetrics), how much was changed{self.note}; flicker: "
            "difference in grey levels between the changes of neighbouring frames. Means with 95% confidence "
            "intervals; last column: the mean over categories.",
        )


def _flicker(edited_FHWC: Pixels, source_FHWC: Pixels) -> float:
    changes = ((a.astype(np.float32) - b).mean(-1) for a, b in zip(edited_FHWC, source_FHWC, strict=True))
    return float(np.mean([np.abs(after - before).mean() for before, after in pairwise(changes)]))


def _features(output: Any) -> Tensor:
    """Features, which some versions of transformers return inside an output object."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features.float().cpu()
