"""`kiwi cache --config YAML --out CACHE`: what frozen encoders say about a run's data, once for all runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kiwi import console
from kiwi.cli import parser
from kiwi.errors import InputError
from kiwi.training.editor_experiment import EditorExperiment, read_editor_experiment

if TYPE_CHECKING:
    from kiwi.data.dataset import Encodable
    from kiwi.data.feature_cache import Dtype, Entry, FeatureCache
    from kiwi.models.mllm.encoder import MllmEncoder
    from kiwi.models.vae.wan import VideoVae

_WHAT = """Keep what the frozen encoders say about an experiment's data.

That is the VAE's latents of sources and targets, and what the MLLM's vision tower sees of sources and references.

`kiwi fit` with `--data.cache CACHE` then reads these instead of decoding clips and running VAE and tower. What is there
already is passed by, so that a killed command goes on where it was, several experiments may share a cache, and several
processes may fill it, each with its part (`--part 1/4`)."""


def main(argv: list[str]) -> int:
    """Fill, or verify, a cache."""
    options = parser(argv[0], _WHAT)
    options.add_argument("--config", type=Path, help="experiment of `kiwi fit`, for its data and encoders")
    options.add_argument("--out", type=Path, required=True, metavar="CACHE", help="folder of the cache")
    options.add_argument("--root", help="folder of the manifests (default: the experiment's data.root)")
    options.add_argument("--only", choices=("latents", "features"), help="of the VAE, or of the tower (default: both)")
    options.add_argument("--part", default="1/1", metavar="I/N", help="of N processes, this is number I")
    options.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="numbers are kept in this")
    options.add_argument("--clips", type=int, default=64, help="clips or pictures a shard")
    options.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    options.add_argument("--verify", action="store_true", help="only read all of the cache, deleting damaged shards")
    arguments = options.parse_args(argv[1:])
    if arguments.verify:
        return _verify(arguments.out)
    if arguments.config is None:
        raise InputError("cache needs an experiment", fix="--config YAML, or --verify")
    number, parts = _part(arguments.part)
    if arguments.clips < 1:
        raise InputError("--clips must be at least 1", got=arguments.clips)

    from kiwi.models.device import usable_device

    device = usable_device(arguments.device)
    experiment = read_editor_experiment(arguments.config)
    if arguments.root is not None:
        experiment.data["root"] = arguments.root
    encoders = _Encoders(experiment, arguments.only)
    cache, wanted = encoders.cache(arguments.out, arguments.dtype)
    own = {name: item for name, item in wanted.items() if int(name[:8], 16) % parts == number - 1}
    missing = [item for item in own.values() if any(key and key not in cache for key in (item.latents, item.seen))]
    encoders.fill(cache, missing, arguments.clips, device)
    console.print(f"{arguments.out}: {len(missing)} clips and pictures encoded, {len(cache)} entries in all")
    return 0


def _verify(folder: Path) -> int:
    from kiwi.data.feature_cache import FeatureCache

    cache = FeatureCache(folder)
    damaged = cache.verify()
    for path in damaged:
        console.print(f"{path} was damaged and is deleted: run `kiwi cache` again")
    console.print(f"{folder}: {len(cache)} entries, all of them whole")
    return 1 if damaged else 0


class _Encoders:
    """The frozen encoders of an experiment, as training has them."""

    def __init__(self, experiment: EditorExperiment, only: str | None) -> None:
        from kiwi.keyed import forked_rng

        self.experiment, config = experiment, experiment.config
        self.vae: VideoVae = config.vae.build().eval()
        if not self.vae.fingerprint:
            got = type(config.vae).__name__
            raise InputError("an untrained VAE has nothing to keep", wanted="a WanVae", got=got)
        self.keeps_latents = only != "features"
        self.mllm: MllmEncoder | None = None
        # Of an editor without connectors too: a source that the tower has not seen would be decoded for it.
        if only != "latents":
            with forked_rng(experiment.seed, "mllm"):
                self.mllm = config.mllm.build().eval()

    def cache(self, folder: Path, dtype: Dtype) -> tuple[FeatureCache, dict[str, Encodable]]:
        """The cache in the folder, and all that it is to know of the experiment's data."""
        from kiwi.data.datamodule import EditData
        from kiwi.data.feature_cache import EncoderFingerprints, FeatureCache

        multiple = self.experiment.config.dit.size_multiple(self.vae.spatial_factor)
        data = EditData(**self.experiment.data, multiple=multiple, seed=self.experiment.seed)
        data.setup()
        encoders = EncoderFingerprints(
            vae=self.vae.fingerprint if self.keeps_latents else "",
            mllm="" if self.mllm is None else self.mllm.vision_fingerprint(),
        )
        cache = FeatureCache.create(folder, encoders, dtype)
        cache.encoders = encoders  # what another command keeps there is not this one's to add to
        return cache, {name: item for each in data.sets.values() for name, item in each.encoding_jobs(cache).items()}

    def fill(self, cache: FeatureCache, missing: list[Encodable], clips: int, device: str) -> None:
        """Encode, and write shards of as many clips."""
        self.vae.to(device)
        if self.mllm is not None:
            self.mllm.model.visual.to(device)
        pending: dict[str, Entry] = {}
        for number, item in enumerate(console.progress(missing, "encoding"), start=1):
            pending |= {key: entry for key, entry in self._encoded(item).items() if key not in cache}
            if number % clips == 0:
                cache.write(pending)
                pending = {}
        cache.write(pending)

    def _encoded(self, item: Encodable) -> dict[str, Entry]:
        import torch

        from kiwi.data.sample import video_tensor
        from kiwi.encoded import LatentDistribution

        frames = item.load()
        found: dict[str, Entry] = {}
        with torch.no_grad():
            if item.latents:
                clip = video_tensor(frames[None]).to(next(self.vae.parameters()).device)
                posterior = self.vae.posterior(clip)
                found[item.latents] = LatentDistribution(posterior.mean[0], posterior.deviation[0])
            if item.seen:
                assert self.mllm is not None
                pictures = self.mllm.preprocessor
                shown = pictures.prepare_reference(frames[0]) if item.is_reference else pictures.prepare_source(frames)
                found[item.seen] = self.mllm.encode_image(shown)
        return found


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise InputError("--part is not one of several", got=text, wanted="I/N with 1 <= I <= N, such as 2/4")
    return int(number), int(parts)
