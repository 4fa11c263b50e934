"""Feature caches that arms read (`data.cache`): check that they fit, and fill them once before the runs start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kiwi.ablation.costs import editor_of
from kiwi.ablation.steps import Step, child_environment, write_steps
from kiwi.ablation.study import Arm
from kiwi.data.feature_cache import FeatureCache
from kiwi.errors import InputError
from kiwi.media.files import make_folder, write_text
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.tuning import Frozen
from kiwi.spec import to_dict
from kiwi.training.cache import CacheOptions

DATA_FIELDS = ("root", "train", "validation", "max_pixels", "holdout")
"""Options of the data that determine which clips are encoded, and at which size."""


@dataclass(frozen=True, kw_only=True)
class CacheRequest:
    """What a cache must contain.

    Args:
        folder: of the cache.
        experiment: resolved; with the data to encode and the encoders.
        where: arm and stage, for messages.
    """

    folder: Path
    experiment: Mapping[str, Any]
    where: str


def cache_requests(arms: Sequence[Arm], seeds: Sequence[int]) -> list[CacheRequest]:
    """The distinct caches of all stages that train an editor from one.

    Raises:
        InputError: one cache for different encoders, or for an MLLM that is different under each seed.
    """
    requests: dict[str, CacheRequest] = {}
    users: dict[Path, tuple[str, str]] = {}
    for arm in arms:
        for stage, resolved in arm.resolved.items():
            data, where = resolved.get("data", {}), f"{arm.label}, stage {stage}"
            editor = editor_of(resolved, where) if data.get("cache") else None
            if editor is None:
                continue
            config, folder = editor.config, Path(data["cache"])
            mllm = config.mllm.replace(tuning=Frozen()) if isinstance(config.mllm, QwenVL) else config.mllm
            encoders = repr((config.vae, mllm))
            first_encoders, first = users.setdefault(folder, (encoders, where))
            if first_encoders != encoders:
                raise InputError(
                    f"the cache {folder} cannot serve {first} and {where}",
                    code="cache-mismatch",
                    got="a different VAE or MLLM, or different limits",
                    fix="give that arm a data.cache of its own",
                )
            if isinstance(config.mllm, NewQwen) and len(seeds) > 1 and cache_content(folder) != "latents":
                raise InputError(
                    f"the cache {folder} cannot serve {where} under more than one seed",
                    code="cache-mismatch",
                    got="an MLLM without pretrained weights, whose features differ from seed to seed",
                    fix="remove data.cache, or fill it with `kiwi cache --only latents` first",
                )
            key = repr((folder, config.dit.patch_size, *(data.get(name) for name in DATA_FIELDS)))
            experiment = {**resolved, "seed_everything": seeds[0]}
            requests.setdefault(key, CacheRequest(folder=folder, experiment=experiment, where=where))
    return list(requests.values())


def fill_caches(requests: Sequence[CacheRequest], out: Path) -> None:
    """Encode what is missing, in child processes that release the accelerator's memory. Caches keep their format.

    Args:
        requests: the caches to fill.
        out: folder of the study; OUT/caches has the experiments that they were filled for.

    Raises:
        InputError: a cache could not be filled.
    """
    folder = out / "caches"
    for number, request in enumerate(requests):
        make_folder(folder)
        make_folder(request.folder.parent)
        config = folder / f"{number}.yaml"
        write_text(config, yaml.safe_dump(dict(request.experiment)))
        options = CacheOptions(config=config, out=request.folder)
        if content := cache_content(request.folder):
            dtype = str(FeatureCache(request.folder).dtype).removeprefix("torch.")
            options = options.replace(only=None if content == "both" else content, dtype=dtype)
        write_steps(folder, [Step(command="cache", options=to_dict(options), out=request.folder)])
        command = [sys.executable, "-m", "kiwi.ablation.child_process", str(folder), "0"]
        if code := subprocess.run(command, stdin=subprocess.DEVNULL, env=child_environment()).returncode:
            raise InputError(
                f"the cache {request.folder} could not be filled for {request.where}",
                code="cache-failed",
                got=f"exit code {code}",
                fix="see the output above; rerun the same command to resume",
            )


def cache_content(folder: Path) -> Literal["", "latents", "features", "both"]:
    """What an existing cache has; empty if there is none."""
    if not (folder / "cache.json").is_file():
        return ""
    encoders = FeatureCache(folder).encoders
    return "both" if all(encoders) else "latents" if encoders.vae else "features"
