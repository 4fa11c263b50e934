"""`kiwi cache`: encode all clips of an experiment with its frozen encoders, and store the results in a feature cache.

This is part of `kiwi.training` because it needs both `kiwi.data` and the encoders of `kiwi.models`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from kiwi import console
from kiwi.errors import InputError
from kiwi.options import Options, option

if TYPE_CHECKING:
    from kiwi.data.dataset import EncodingJob
    from kiwi.data.feature_cache import Entry, FeatureCache
    from kiwi.models.mllm.encoder import MllmEncoder
    from kiwi.models.vae.wan import VideoVae
    from kiwi.training.editor_experiment import EditorExperiment


@dataclass(frozen=True, kw_only=True)
class CacheOptions(Options):
    """Encode an experiment's clips once, for all training runs on them.

    The cache holds the VAE latents of sources and targets, and the MLLM vision features of sources and references.
    `kiwi fit` with `--data.cache CACHE` reads these instead of decoding clips and running the encoders. Existing
    entries are skipped: rerun a killed command to resume it, share a cache among experiments, or let several processes
    fill it, each with its part (`--part 1/4`).

    Args:
        config: experiment of `kiwi fit` that names the data and the encoders.
        out: cache folder.
        root: folder of the manifests (default: the experiment's data.root).
        only: store only the VAE latents, or only the vision features (default: both).
        part: part of the clips that this process encodes, such as 2/4 for the second of four processes.
        dtype: number format of the entries.
        clips: number of clips and images per shard.
        device: cpu, cuda, cuda:1 ... (default: cuda if available).
        verify: encode nothing; read all entries and delete damaged shards.
    """

    config: Path | None = None
    out: Path = option(metavar="CACHE")
    root: str | None = None
    only: Literal["latents", "features"] | None = None
    part: str = option("1/1", metavar="I/N")
    dtype: Literal["float16", "float32"] = "float16"
    clips: int = 64
    device: str | None = None
    verify: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "clips")
        number, count = self.process_number_and_count
        if not 1 <= number <= count:
            expected = "I/N with 1 <= I <= N, such as 2/4"
            raise InputError("--part is invalid", code="out-of-range", got=self.part, expected=expected)
        if self.config is None and not self.verify:
            fix = "give --config EXPERIMENT.yaml, or --verify"
            raise InputError("no experiment is given", code="missing-option", fix=fix)

    @property
    def process_number_and_count(self) -> tuple[int, int]:
        """The number of this process, from 1, and the number of processes; (0, 0) if `part` is malformed."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.part, re.ASCII)
        return (int(match[1]), int(match[2])) if match else (0, 0)


class FilledCache(NamedTuple):
    """Numbers of clips and images that a call of `fill_cache` encoded, and of entries that the cache holds then."""

    encoded: int
    entries: int
    damaged: Sequence[Path] = ()
    """Damaged files that `verify` has deleted."""


def fill_cache(options: CacheOptions) -> FilledCache:
    """Encode those clips of an experiment that the cache does not hold yet; with `verify`, encode nothing.

    Raises:
        InputError: the experiment does not train an editor, its data cannot be read, its VAE is untrained, or the cache
            was built with different encoders.
    """
    if options.config is None or options.verify:
        return _verify_cache(options.out)

    from kiwi.models.device import resolve_device
    from kiwi.training.editor_experiment import read_editor_experiment

    device = resolve_device(options.device)
    experiment = read_editor_experiment(options.config)
    if options.root is not None:
        experiment.data["root"] = options.root
    encoders = _FrozenEncoders(experiment, options.only)
    cache, jobs = encoders.open_cache(options)
    number, count = options.process_number_and_count
    missing = [
        job
        for name, job in jobs.items()
        if int(name[:8], 16) % count == number - 1
        and any(key and key not in cache for key in (job.posterior_key, job.features_key))
    ]
    encoders.fill(cache, missing, options.clips, device)
    return FilledCache(len(missing), len(cache))


def _verify_cache(folder: Path) -> FilledCache:
    from kiwi.data.feature_cache import FeatureCache

    cache = FeatureCache(folder)
    damaged = cache.verify()
    return FilledCache(0, len(cache), damaged)


class _FrozenEncoders:
    """The frozen encoders of an experiment, built as for training."""

    def __init__(self, experiment: EditorExperiment, only: str | None) -> None:
        from kiwi.keyed import forked_rng

        self.experiment, config = experiment, experiment.config
        self.vae: VideoVae = config.vae.build().eval()
        if not self.vae.fingerprint:
            got = type(config.vae).__name__
            raise InputError("an untrained VAE cannot fill a cache", code="untrained-vae", got=got, expected="a WanVae")
        self.keeps_latents = only != "features"
        self.mllm: MllmEncoder | None = None
        # Editors without connectors need vision features too: otherwise training would decode their sources.
        if only != "latents":
            with forked_rng(experiment.seed, "mllm"):
                self.mllm = config.mllm.build().eval()

    def open_cache(self, options: CacheOptions) -> tuple[FeatureCache, dict[str, EncodingJob]]:
        """Open the cache, and list the encoding jobs of all clips and images of the experiment."""
        from kiwi.data.datamodule import EditData
        from kiwi.data.feature_cache import EncoderFingerprints, FeatureCache

        multiple = self.experiment.config.dit.size_multiple(self.vae.spatial_factor)
        data = EditData(**self.experiment.data, multiple=multiple, seed=self.experiment.seed)
        data.setup()
        encoders = EncoderFingerprints(
            vae=self.vae.fingerprint if self.keeps_latents else "",
            mllm="" if self.mllm is None else self.mllm.vision_fingerprint(),
        )
        cache = FeatureCache.create(options.out, encoders, options.dtype)
        cache.encoders = encoders  # add no entries of other encoders, which the cache may hold too
        return cache, {
            name: job for dataset in data.datasets.values() for name, job in dataset.list_encoding_jobs(cache).items()
        }

    def fill(self, cache: FeatureCache, jobs: Sequence[EncodingJob], shard_size: int, device: str) -> None:
        """Run the jobs, and write a shard after every `shard_size` of them."""
        self.vae.to(device)
        if self.mllm is not None:
            self.mllm.model.visual.to(device)
        pending: dict[str, Entry] = {}
        for number, job in enumerate(console.progress(jobs, "encoding"), start=1):
            pending |= {key: entry for key, entry in self._encode(job).items() if key not in cache}
            if number % shard_size == 0:
                cache.write(pending)
                pending = {}
        cache.write(pending)

    def _encode(self, job: EncodingJob) -> dict[str, Entry]:
        """Encode one clip or image, and return its cache entries by key."""
        import torch

        from kiwi.data.sample import to_video_tensor
        from kiwi.encoded import LatentDistribution

        frames = job.load()
        entries: dict[str, Entry] = {}
        with torch.no_grad():
            if job.posterior_key:
                video_BCFHW = to_video_tensor(frames[None]).to(next(self.vae.parameters()).device)
                posterior = self.vae.posterior(video_BCFHW)
                entries[job.posterior_key] = LatentDistribution(posterior.mean[0], posterior.std[0])
            if job.features_key:
                assert self.mllm is not None
                preprocessor = self.mllm.preprocessor
                is_reference, prepare_source = job.is_reference, preprocessor.prepare_source
                image = preprocessor.prepare_reference(frames[0]) if is_reference else prepare_source(frames)
                entries[job.features_key] = self.mllm.encode_image(image)
        return entries
