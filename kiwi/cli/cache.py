"""`kiwi cache --config YAML --out CACHE`: what the VAE says about a run's clips, once for all runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi import console
from kiwi.cli import parser
from kiwi.errors import InputError

if TYPE_CHECKING:
    from kiwi.data.datamodule import EditData
    from kiwi.data.latent_cache import LatentCache
    from kiwi.models.vae import VideoVae

_WHAT = """Encode the sources and targets of an experiment's training data with its VAE, and keep what it says.

`kiwi fit` with `--data.cache CACHE` then reads latents instead of decoding targets and running the VAE. Clips that are
there already are passed by, so that a killed command goes on where it was, several experiments may share a cache, and
several processes may fill it, each with its part (`--part 1/4`)."""


def main(argv: list[str]) -> int:
    """Fill, or verify, a cache."""
    options = parser(argv[0], _WHAT)
    options.add_argument("--config", type=Path, help="experiment of `kiwi fit`, for its data and its VAE")
    options.add_argument("--out", type=Path, required=True, metavar="CACHE", help="folder of the cache")
    options.add_argument("--root", help="folder of the manifests (default: the experiment's data.root)")
    options.add_argument("--part", default="1/1", metavar="I/N", help="of N processes, this is number I")
    options.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="that numbers are kept in")
    options.add_argument("--clips", type=int, default=64, help="clips a shard")
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

    from kiwi.data.latent_cache import LatentCache
    from kiwi.editing.editor import usable_device

    data, vae = _experiment(arguments.config, arguments.root)
    cache = LatentCache.create(arguments.out, vae.fingerprint, arguments.dtype)
    done = _fill(cache, data, vae.to(usable_device(arguments.device)), number, parts, arguments.clips)
    console.say(f"{arguments.out}: {done} clips encoded, {len(cache)} in all")
    return 0


def _verify(folder: Path) -> int:
    from kiwi.data.latent_cache import LatentCache

    cache = LatentCache(folder)
    damaged = cache.verify()
    for path in damaged:
        console.say(f"{path} was damaged and is deleted: run `kiwi cache` again")
    console.say(f"{folder}: {len(cache)} clips, all of them whole")
    return 1 if damaged else 0


def _experiment(file: Path, root: str | None) -> tuple[EditData, VideoVae]:
    """The data and the VAE of an experiment, the VAE ready to encode."""
    from kiwi.data.datamodule import EditData, manifests_of
    from kiwi.experiment import read_experiment, section
    from kiwi.models.config import KiwiConfig
    from kiwi.spec import from_dict

    found = read_experiment(file)
    model, said = section(found, "model.init_args", file), section(found, "data", file)
    if "config" not in model:
        raise InputError(f"{file} trains no editor", wanted="an experiment with model.init_args.config")
    config: KiwiConfig = from_dict(KiwiConfig, model["config"], "model.config")
    vae = config.vae.build().eval()
    if not vae.fingerprint:
        raise InputError("an untrained VAE has nothing to keep", wanted="a WanVae", got=type(config.vae).__name__)
    names = ("root", "max_pixels", "holdout")
    given: dict[str, Any] = {name: said[name] for name in names if name in said}
    if wrong := [name for name in ("max_pixels", "holdout") if type(given.get(name, 0)) is not int]:
        raise InputError(f"data.{wrong[0]} of {file} is no whole number", got=repr(given[wrong[0]]))
    given |= {"root": root} if root is not None else {}
    for name in ("train", "validation"):
        given[name] = manifests_of(said.get(name) or [], f"data.{name} of {file}")
    multiple = vae.spatial_factor * config.dit.patch_size[1]
    data = EditData(**given, multiple=multiple, seed=found.get("seed_everything", 0))
    data.setup()
    return data, vae


def _fill(cache: LatentCache, data: EditData, vae: VideoVae, number: int, parts: int, clips: int) -> int:
    import torch

    from kiwi.data.latent_cache import Latents
    from kiwi.data.sample import video_tensor

    wanted = {key: load for dataset in data.sets.values() for key, load in dataset.clips(cache).items()}
    missing = {key: clip for key, clip in wanted.items() if key not in cache and int(key[:8], 16) % parts == number - 1}
    pending: dict[str, Latents] = {}
    with torch.no_grad():
        for key, load in console.progress(missing.items(), "encoding", len(missing)):
            posterior = vae.posterior(video_tensor(load()[None]).to(next(vae.parameters()).device))
            pending[key] = Latents(posterior.mean_BCFHW[0], posterior.deviation_BCFHW[0])
            if len(pending) == clips:
                cache.write(pending)
                pending = {}
    cache.write(pending)
    return len(missing)


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise InputError("--part is not one of several", got=text, wanted="I/N with 1 <= I <= N, such as 2/4")
    return int(number), int(parts)
