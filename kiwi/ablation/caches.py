"""Caches of features that arms read (`data.cache`): whether they can, and filling them once before the runs begin."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kiwi.ablation.costs import config_of
from kiwi.ablation.runs import TETHER
from kiwi.ablation.study import Arm
from kiwi.data.feature_cache import FeatureCache
from kiwi.errors import InputError
from kiwi.media.files import make_folder, write_text
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.tuning import Frozen

ENCODED = ("root", "train", "validation", "max_pixels", "holdout")
"""Options of the data that say which clips are encoded, and at which size."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a cache is to hold.

    Args:
        folder: of the cache.
        experiment: resolved; of whose data and by whose encoders.
        where: arm and stage, for messages.
    """

    folder: Path
    experiment: Mapping[str, Any]
    where: str


def caches_of(arms: Sequence[Arm], seeds: Sequence[int]) -> list[Wanted]:
    """Of every stage that trains an editor from a cache, what differs once.

    Raises:
        InputError: one cache for encoders that differ, or for an MLLM that is another one under each seed.
    """
    found: dict[str, Wanted] = {}
    served: dict[Path, tuple[str, str]] = {}
    for arm in arms:
        for stage, resolved in arm.resolved.items():
            data = resolved.get("data", {})
            config = config_of(resolved) if data.get("cache") else None
            if config is None:
                continue  # reads none, or is no editor: `fit` says what it lacks
            folder, where = Path(data["cache"]), f"{arm.label}, stage {stage}"
            mllm = replace(config.mllm, tuning=Frozen()) if isinstance(config.mllm, QwenVL) else config.mllm
            encoders = repr((config.vae, mllm))
            other, first = served.setdefault(folder, (encoders, where))
            if other != encoders:
                raise InputError(
                    f"the cache {folder} cannot serve {first} and {where}",
                    got="another VAE or MLLM, or other limits",
                    fix="give that arm a data.cache of its own",
                )
            if isinstance(config.mllm, NewQwen) and len(seeds) > 1 and _keeps(folder) != "latents":
                raise InputError(
                    f"the cache {folder} cannot serve {where} under more than one seed",
                    got="an MLLM without weights, which sees otherwise under each",
                    fix="leave data.cache out, or fill it with `kiwi cache --only latents` first",
                )
            key = repr((folder, config.dit.patch_size, *(data.get(name) for name in ENCODED)))
            experiment = {**resolved, "seed_everything": seeds[0]}
            found.setdefault(key, Wanted(folder=folder, experiment=experiment, where=where))
    return list(found.values())


def fill(caches: Sequence[Wanted], out: Path) -> None:
    """Encode what is missing, in a process that gives an accelerator's memory back; what is there keeps its format.

    Args:
        caches: to fill.
        out: of the study; OUT/caches has the experiments that they were filled for.

    Raises:
        InputError: one could not be filled.
    """
    surroundings = os.environ | {TETHER: str(os.getpid())}
    for number, wanted in enumerate(caches):
        make_folder(out / "caches")
        make_folder(wanted.folder.parent)
        file = out / "caches" / f"{number}.yaml"
        write_text(file, yaml.safe_dump(dict(wanted.experiment)))
        command = ["cache", "--config", str(file), "--out", str(wanted.folder)]
        if only := _keeps(wanted.folder):
            command += ["--only", only] if only != "both" else []
            command += ["--dtype", str(FeatureCache(wanted.folder).dtype).removeprefix("torch.")]
        process = [sys.executable, "-m", "kiwi.ablation.child_process", *command]
        if code := subprocess.run(process, stdin=subprocess.DEVNULL, env=surroundings).returncode:
            raise InputError(
                f"the cache {wanted.folder} could not be filled for {wanted.where}",
                got=f"exit code {code}",
                fix="see what is said above; the same command goes on where it was",
            )


def _keeps(folder: Path) -> str:
    """latents, features or both; empty for no cache."""
    if not (folder / "cache.json").is_file():
        return ""
    encoders = FeatureCache(folder).encoders
    return "both" if all(encoders) else "latents" if encoders.vae else "features"
