"""The published diffusers folder: a subfolder a part, the MLLM with its adapters merged, the VAE's original names.

Its Python files (the custom pipeline) are the publisher's: a folder written here needs them beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kiwi.checkpoints.assemble import ImportSettings, Report, assemble
from kiwi.checkpoints.diffusers_layout import (
    EMBEDDERS,
    PARTS,
    VERSION,
    classic,
    embedder_config,
    encoder_config,
    limits_of,
    ours,
    pads_first,
    theirs,
    transformer_config,
)
from kiwi.checkpoints.folder import read_folder_config, unexpected_files
from kiwi.checkpoints.published import require_expressible, text_embedding
from kiwi.errors import CheckpointError, KiwiError
from kiwi.media.files import atomic_folder, write_json
from kiwi.models.config import KiwiConfig
from kiwi.models.dit.base import WanBase, read_wan_transformer
from kiwi.models.mllm.encoder import MllmEncoder, QwenVL
from kiwi.models.sampling import EditingDefaults, Sampling
from kiwi.models.tuning import Frozen
from kiwi.models.vae.formats import original_state
from kiwi.models.vae.wan import WanVae, published_config
from kiwi.weights.adapters import is_adapter, merge_adapters, without_base_layer
from kiwi.weights.files import State, read_json, read_weights, saved_dtype, write_weights
from kiwi.weights.hub import locate
from kiwi.weights.strict import require_finite_floats

WEIGHTS = "diffusion_pytorch_model"

PIPELINE = Sampling(sigma_min=0.003 / 1.002)
"""How the publisher's diffusers pipeline samples, whatever its scheduler_config.json says."""


def import_diffusers(
    source: str,
    changes: Mapping[str, Any],
    folder: Path,
    report: Report,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> None:
    """A published diffusers folder (or hub id) as a model folder; VAE and MLLM are in it and are copied.

    Args:
        source: the folder or id.
        changes: choices other than the folder's, by dotted path.
        folder: to be written.
        report: told what was done.
        dtype: of the editor's own parts; None keeps theirs. VAE and MLLM keep theirs always.
        seed: of the initial values of what is absent.

    Raises:
        CheckpointError: a part that is missing, or tensors that do not fit; see `assemble`.
    """
    root = locate(source, "diffusers folder", "name a folder with model_index.json")
    parts = {part: read_weights(root / part) for part in ("transformer", *EMBEDDERS) if (root / part).is_dir()}
    listed = read_json(root / "model_index.json") if (root / "model_index.json").is_file() else {}
    if missing := [part for part in PARTS if part in listed and not (root / part).is_dir()]:
        raise CheckpointError(
            f"parts of {root} are missing", got=f"no {', '.join(missing)}", wanted="what its model_index.json lists"
        )
    if "transformer" not in parts:
        raise CheckpointError(f"{root} is not a published diffusers folder", wanted="the folders transformer, vae, ...")
    parts["mllm_encoder"] = read_weights(_encoder_file(root))
    transformer = read_json(root / "transformer/config.json")
    said = {"dit.num_heads": transformer.get("num_attention_heads"), "dit.eps": transformer.get("eps")}
    layers = len({name.split(".")[1] for name in parts["transformer"] if name.startswith("blocks.")})
    if transformer.get("num_layers", layers) != layers:
        raise CheckpointError(
            f"{root / 'transformer'} holds another number of blocks than its config.json says",
            got=layers,
            wanted=transformer["num_layers"],
        )
    for path, value in said.items():
        if value is not None and changes.get(path, value) != value:
            report(path, f"{changes[path]}, though the folder says {value}")
    if (root / "ref_embedder").is_dir() and pads_first(read_json(root / "ref_embedder/config.json")):
        said["reference"] = "PrependReference"
    with tempfile.TemporaryDirectory() as temporary, _naming(root / "mllm_encoder", temporary, report) as told:
        mllm = _hub_layout(root, Path(temporary))
        limits = limits_of(read_json(root / "mllm_encoder/config.json"))
        origin = ImportSettings(
            vae=WanVae(path=str(root / "vae")),
            mllm=QwenVL(path=str(mllm), limits=limits, dtype=saved_dtype(mllm)),
            changes={**{path: value for path, value in said.items() if value is not None}, **changes},
            dtype=dtype,
            editing=EditingDefaults(sampling=PIPELINE),
            seed=seed,
        )
        assemble(ours(parts), origin, folder, told)
    report("sampling", f"as the publisher's pipeline: steps towards sigma_min {PIPELINE.sigma_min:.6f}")


def export_diffusers(folder: Path, target: Path, report: Report, dtype: torch.dtype | None = None) -> None:
    """A model folder as a published diffusers folder.

    Args:
        folder: the model folder.
        target: to be written; a model that stood there is replaced as a whole.
        report: told what was done.
        dtype: of the editor's own parts; None keeps theirs. VAE and MLLM keep theirs always.

    Raises:
        CheckpointError: choices that the published code does not have, or an MLLM that is no Qwen2.5-VL.
        InputError: a folder that cannot be written, or holds other things than a model.
    """
    record = read_folder_config(folder)
    config = record.config
    require_expressible(config)
    mllm, vae = config.mllm.replace(tuning=Frozen()).build(), config.vae.build()
    if mllm.config.model_type != "qwen2_5_vl":
        raise CheckpointError("the published folder holds a Qwen2.5-VL", got=mllm.config.model_type)
    state = read_weights(folder)
    require_finite_floats(state, str(folder))
    own = {name: tensor for name, tensor in state.items() if not name.startswith(("dit.", "mllm."))}
    own |= {f"dit.{name}": tensor for name, tensor in _whole_dit(config, state, report).items()}
    parts = theirs({name: tensor.to(dtype or tensor.dtype) for name, tensor in own.items()})
    settings = {"transformer": transformer_config(config), "mllm_encoder": encoder_config(config, mllm.hidden_size)}
    with atomic_folder(target, unexpected_files) as new:
        _write(new / "vae", original_state(vae.vae), published_config(vae))
        for part, weights in parts.items():
            _write(new / part, weights, settings.get(part, embedder_config(config)))
        language = _whole_mllm(mllm, state, report)
        write_weights({classic(name): tensor for name, tensor in language.items()}, new / "mllm_encoder")
        mllm.save_processor(new / "processor")
        mllm.config.save_pretrained(new / "processor")
        (new / "processor/config.json").rename(new / "processor/qwen_config.json")
        _write_index(new, config)
    for part in EMBEDDERS.keys() - parts.keys():
        report(part, "the model has none: left out")
    report("pipeline code", "not written: the publisher's .py files belong beside the folder's parts")


def _whole_dit(config: KiwiConfig, state: State, report: Report) -> State:
    """The DiT's tensors without `dit.`, base weights and adapters brought together, text embedding of zeros."""
    own = {without_base_layer(n).removeprefix("dit."): t for n, t in state.items() if n.startswith("dit.")}
    adapters = {name: tensor for name, tensor in own.items() if is_adapter(name)}
    weights = {name: tensor for name, tensor in own.items() if not is_adapter(name)}
    if isinstance(config.dit.base, WanBase):
        weights = read_wan_transformer(config.dit.base.path, config.dit.base.subfolder)
    if adapters:
        report("dit", f"{len(adapters) // 2} adapters merged")
    return merge_adapters(weights, adapters) | text_embedding(config.dit.dim, weights["patch_embedding.weight"].dtype)


def _whole_mllm(mllm: MllmEncoder, state: State, report: Report) -> State:
    """The MLLM's tensors, with what the editor learned of them."""
    own = {name.removeprefix("mllm.model."): t for name, t in state.items() if name.startswith("mllm.")}
    adapters = {name: tensor for name, tensor in own.items() if is_adapter(name)}
    if adapters:
        report("mllm", f"{len(adapters) // 2} adapters merged")
    learned = {name: tensor for name, tensor in own.items() if not is_adapter(name)}
    return merge_adapters({**mllm.model.state_dict(), **learned}, adapters)


def _hub_layout(root: Path, folder: Path) -> Path:
    """The MLLM of a published folder as a folder that transformers reads: links, nothing is copied.

    Raises:
        CheckpointError: no configuration or no weights.
    """
    encoder, processor = root / "mllm_encoder", root / "processor"
    if not (processor / "qwen_config.json").is_file():
        raise CheckpointError(f"{root} is not a published diffusers folder", wanted="processor/qwen_config.json")
    for file in processor.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    for file in encoder.glob("model*.safetensors*"):
        (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").symlink_to((processor / "qwen_config.json").resolve())
    return folder


@contextmanager
def _naming(folder: Path, temporary: str, report: Report) -> Iterator[Report]:
    """Reports and errors that name the folder of a part, instead of a temporary one that nobody can look at."""
    try:
        yield lambda part, text: report(part, text.replace(temporary, str(folder)))
    except KiwiError as problem:
        raise CheckpointError(str(problem).replace(temporary, str(folder))) from problem


def _encoder_file(root: Path) -> Path:
    """Queries and connectors, which share their folder with the MLLM's weights."""
    index = root / "mllm_encoder" / f"{WEIGHTS}.safetensors.index.json"
    return index if index.is_file() else root / "mllm_encoder" / f"{WEIGHTS}.safetensors"


def _write_index(folder: Path, config: KiwiConfig) -> None:
    """The scheduler's configuration, which the published pipeline ships and does not use, and model_index.json."""
    (folder / "scheduler").mkdir()
    scheduler: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": VERSION}
    scheduler |= {"shift": config.schedule.shift, "num_train_timesteps": config.schedule.num_train_timesteps}
    write_json(folder / "scheduler" / "scheduler_config.json", {**scheduler, "base_shift": 0.5, "max_shift": 1.15})
    index: dict[str, Any] = {"_class_name": ["pipeline_kiwi_edit", "KiwiEditPipeline"], "_diffusers_version": VERSION}
    write_json(folder / "model_index.json", index | {n: v for n, v in PARTS.items() if (folder / n).is_dir()})


def _write(folder: Path, state: State, config: dict[str, Any]) -> None:
    folder.mkdir()
    write_weights(state, folder, WEIGHTS)
    write_json(folder / "config.json", config)
