"""Automatic metrics of edited videos, which complement the judge's scores and cannot replace them.

The only module of `kiwi.bench` that imports torch, and only with `--metrics`. PSNR, SSIM and LPIPS compare the edit,
resized to the source's size, with the source over the frames that both have: they measure how much was changed, not
whether the change was right.
"""

from collections import Counter
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
from kiwi.errors import CheckpointError, InputError, KiwiError, first_line
from kiwi.evaluation.fidelity import Lpips, PerceptualMetric, compute_edit_metrics, no_perceptual_metric
from kiwi.media.image import read_image
from kiwi.media.resize import resize
from kiwi.media.video import list_differences, probe, read_video
from kiwi.models.device import resolve_device
from kiwi.spec import from_dict
from kiwi.statistics.intervals import bootstrap_mean
from kiwi.tables import Table
from kiwi.weights.hub import locate

BATCH_SIZE = 32
"""Number of frames that an encoder processes at once."""

MIN_SIDE = 32
"""Smallest height and width in pixels, set by LPIPS; the window of SSIM needs 11."""


class Encoder:
    """A CLIP or DINO model from transformers that encodes frames, and for CLIP text, as features.

    Args:
        kind: "clip" or "dino".
        folder: folder of the model; it is never looked for on the hub.
        device: device to run on.

    Raises:
        InputError: unknown kind.
        CheckpointError: the model cannot be loaded.
    """

    def __init__(self, kind: str, folder: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        if kind not in ("clip", "dino"):
            expected = "basic, lpips, clip=FOLDER or dino=FOLDER"
            raise InputError(f"--metrics has no metric {kind!r}", code="unknown-metric", expected=expected)
        if not Path(folder).is_dir():  # a mistyped path is not looked for on the hub
            raise CheckpointError(
                f"there is no folder {folder!r} for --metrics {kind}",
                code="missing-model",
                expected=f"{kind}=FOLDER, with a model that transformers saved",
                fix="check the path, or download the model into a folder",
            )
        locate(folder, "model", "check the path")  # rejects pipes and devices
        try:
            self.model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
            self.model.to(device).eval()
            self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if kind == "clip" else None
        except (OSError, ValueError) as error:
            problem, expected = f"{folder} cannot be loaded as {kind}", f"--metrics {kind}=FOLDER"
            raise CheckpointError(problem, code="unreadable-model", got=first_line(error), expected=expected) from None
        self.name, self.device = f"{kind.upper()} ({Path(folder).name})", device

    def encode_frames(self, frames_FHWC: Pixels) -> Tensor:
        """Encode frames as features (F, D)."""
        encode = self.model if self.tokenizer is None else self.model.get_image_features
        features = []
        for start in range(0, len(frames_FHWC), BATCH_SIZE):
            pixels = self.processor(images=list(frames_FHWC[start : start + BATCH_SIZE]), return_tensors="pt")
            features.append(_extract_features(encode(**pixels.to(self.device))))
        return torch.cat(features)

    def encode_text(self, text: str) -> Tensor | None:
        """Encode a text as features (1, D); None if the model has no text encoder."""
        if self.tokenizer is None:
            return None
        tokens = self.tokenizer(text, return_tensors="pt", truncation=True)
        return _extract_features(self.model.get_text_features(**tokens.to(self.device)))


@dataclass(frozen=True, kw_only=True)
class VideoMetrics:
    """PSNR, SSIM and flicker, and metrics from pretrained models.

    Args:
        encoders: models for feature similarities.
        compute_distance_maps: perceptual metric of an edit and its source.
        note: description of the perceptual distances for the table.
        device: device to compare frames on.
    """

    encoders: Sequence[Encoder] = ()
    compute_distance_maps: PerceptualMetric = no_perceptual_metric
    note: str = ""
    device: str = "cpu"

    @classmethod
    def load(cls, names: Sequence[str], device: str | None = None) -> Self:
        """Load metrics by name: basic, lpips (or lpips=alex, vgg, squeeze), clip=FOLDER, dino=FOLDER.

        Raises:
            InputError: unknown name, or a network whose weights are not available.
            CheckpointError: a model cannot be loaded.
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
        note = f"; lpips: LPIPS 0.1 to the source with {lpips.net} (package lpips)"
        return cls(encoders=encoders, compute_distance_maps=lpips.build(device), note=note, device=device)

    @torch.no_grad()
    def compute(self, item: BenchmarkItem, edited: Path) -> dict[str, float]:
        """Compute the metrics of one edited video, by name.

        Returns:
            `psnr` (dB), `ssim` and perceptual distances to the source; `flicker`: how much the change (edit - source)
            differs between neighbouring frames, in grey levels; for each encoder the cosine similarity of neighbouring
            frames (`frames`), to the reference image (`reference`) and to the instruction (`words`, CLIP only).

        Raises:
            InputError: the frames are too small.
            MediaError: a video cannot be read.
        """
        source_FHWC, edited_FHWC = (read_video(path).frames_FHWC for path in (item.source, edited))
        frames, (height, width) = min(len(source_FHWC), len(edited_FHWC)), source_FHWC.shape[1:3]
        if min(height, width) < MIN_SIDE:
            got, expected = f"{width}x{height}", f"at least {MIN_SIDE}x{MIN_SIDE}"
            raise InputError("the frames are too small to compare", code="frames-too-small", got=got, expected=expected)
        source_FHWC, edited_FHWC = source_FHWC[:frames], resize(edited_FHWC[:frames], height, width)
        values = compute_edit_metrics(edited_FHWC, source_FHWC, None, self.compute_distance_maps, self.device)
        if frames > 1:
            values["flicker"] = _measure_flicker(edited_FHWC, source_FHWC)
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

    def make_table(self, items: Sequence[BenchmarkItem], edited: Mapping[str, Path]) -> Table:
        """Tabulate each metric's means over the items that have it, by category and over categories."""
        values: dict[str, dict[str, list[float]]] = {}
        differences = Counter[str]()
        categories = list(dict.fromkeys(item.category for item in items))
        for item in console.progress([item for item in items if edited[item.id].is_file()], "metrics"):
            try:
                metrics = self.compute(item, edited[item.id])
                differences.update(list_differences(probe(item.source), probe(edited[item.id])))
            except KiwiError as error:
                console.note(f"no metrics for {item.id}: {error}")
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
            f"psnr (dB) and ssim: edit against source (torchmetrics), how much was changed{self.note}; flicker: how "
            "much the change differs between neighbouring frames, in grey levels. Means with 95% confidence intervals; "
            "last column: mean over categories." + _format_differences(differences),
        )


def _format_differences(differences: Mapping[str, int]) -> str:
    """Format the number of edits that differ from their source, by property, as a sentence; empty without any."""
    if not differences:
        return ""
    counts = ", ".join(f"{name} ({count})" for name, count in differences.items())
    return (
        f" Some edits differ from their source in {counts}: frames are compared by number, over those that both videos "
        "have, at the source's size."
    )


def _measure_flicker(edited_FHWC: Pixels, source_FHWC: Pixels) -> float:
    changes = ((a.astype(np.float32) - b).mean(-1) for a, b in zip(edited_FHWC, source_FHWC, strict=True))
    return float(np.mean([np.abs(after - before).mean() for before, after in pairwise(changes)]))


def _extract_features(output: Any) -> Tensor:
    """Return features as a tensor; some versions of transformers wrap them in an output object."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features.float().cpu()
