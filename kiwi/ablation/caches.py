"""Feature caches of a study (`data.cache`): check that they suit its arms (configurations), and fill them."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kiwi.ablation.steps import Step, make_child_environment, write_steps
from kiwi.ablation.study import Arm, find_editor_experiment
from kiwi.data.feature_cache import FeatureCache
from kiwi.errors import InputError
from kiwi.media.files import make_folder, write_text
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.tuning import Frozen
from kiwi.spec import to_dict
from kiwi.training.cache import CacheOptions

DATA_FIELDS = ("root", "train", "validation", "max_pixels", "holdout")
"""Fields of `data` that determine which clips are encoded, and at which size."""


@dataclass(frozen=True, kw_only=True)
class CacheRequest:
    """A cache that must be filled before the runs start.

    Args:
        folder: folder of the cache.
        experiment: resolved configuration with the data to encode and the encoders.
        modules: modules to import first (`Step.modules`).
        stage: arm and stage that read the cache, for error messages.
    """

    folder: Path
    experiment: Mapping[str, Any]
    modules: tuple[str, ...]
    stage: str


def list_cache_requests(arms: Sequence[Arm], seeds: Sequence[int]) -> list[CacheRequest]:
    """List the caches that the stages of the arms read, each once.

    Raises:
        InputError: stages with different encoders share a cache, or the MLLM's weights depend on the seed.
    """
    requests: dict[str, CacheRequest] = {}
    first_users: dict[Path, tuple[str, str]] = {}
    for arm in arms:
        for name, resolved in arm.resolved.items():
            data, stage = resolved.get("data", {}), f"stage {name} of {arm.label}"
            editor = find_editor_experiment(resolved, stage) if data.get("cache") else None
            if editor is None:
                continue
            config, folder = editor.config, Path(data["cache"])
            mllm = config.mllm.replace(tuning=Frozen()) if isinstance(config.mllm, QwenVL) else config.mllm
            encoders = repr((config.vae, mllm))
            first_encoders, first_stage = first_users.setdefault(folder, (encoders, stage))
            if first_encoders != encoders:
                got, fix = "a different VAE or MLLM, or different vision limits", "set another data.cache for one"
                message = f"the cache {folder} cannot serve {first_stage} and {stage}"
                raise InputError(message, code="mismatched-cache", got=got, fix=fix)
            if isinstance(config.mllm, NewQwen) and len(seeds) > 1 and read_cache_content(folder) != "latents":
                message = f"the cache {folder} cannot serve {stage} with more than one seed"
                got = "a randomly initialised MLLM, whose features differ from seed to seed"
                fix = "remove data.cache, or fill it with `kiwi cache --only latents` first"
                raise InputError(message, code="mismatched-cache", got=got, fix=fix)
            key = repr((folder, config.dit.patch_size, *(data.get(field) for field in DATA_FIELDS)))
            experiment = {**resolved, "seed_everything": seeds[0]}
            request = CacheRequest(folder=folder, experiment=experiment, modules=arm.modules, stage=stage)
            requests.setdefault(key, request)
    return list(requests.values())


def fill_caches(requests: Sequence[CacheRequest], out: Path) -> None:
    """Encode missing samples, each cache in a child process of its own, so that the accelerator's memory is released.

    Existing caches keep their content and dtype. The configuration of each request is written to OUT/caches.

    Raises:
        InputError: a cache could not be filled.
    """
    folder = out / "caches"
    for index, request in enumerate(requests):
        make_folder(folder)
        make_folder(request.folder.parent)
        config = folder / f"{index}.yaml"
        write_text(config, yaml.safe_dump(dict(request.experiment)))
        options = CacheOptions(config=config, out=request.folder)
        if content := read_cache_content(request.folder):
            dtype = str(FeatureCache(request.folder).dtype).removeprefix("torch.")
            options = options.replace(only=None if content == "both" else content, dtype=dtype)
        step = Step(command="cache", options=to_dict(options), out=request.folder, modules=request.modules)
        write_steps(folder, [step])
        command = [sys.executable, "-m", "kiwi.ablation.child_process", str(folder), "0"]
        if exit_code := subprocess.run(command, stdin=subprocess.DEVNULL, env=make_child_environment()).returncode:
            message = f"the cache {request.folder} could not be filled for {request.stage}"
            fix = "see the output above; rerun the same command to resume"
            raise InputError(message, code="cache-failed", got=f"exit code {exit_code}", fix=fix)


def read_cache_content(folder: Path) -> Literal["", "latents", "features", "both"]:
    """Read which encodings a cache contains; an empty string if there is no cache."""
    if not (folder / "cache.json").is_file():
        return ""
    encoders = FeatureCache(folder).encoders
    return "both" if all(encoders) else "latents" if encoders.vae else "features"
