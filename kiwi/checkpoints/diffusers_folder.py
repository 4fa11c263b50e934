"""The published diffusers folder: one subfolder per part, the MLLM's adapters merged, the VAE's original names.

Its Python files (the custom pipeline) are the publisher's: a folder written here needs them copied into it.
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
    embedder_config,
    encoder_config,
    from_diffusers_parts,
    prepends_reference,
    to_diffusers_parts,
    to_hub_name,
    transformer_config,
    vision_limits,
)
from kiwi.checkpoints.folder_config import read_folder_config, unexpected_files
from kiwi.checkpoints.published import require_publishable, zero_text_embedding
from kiwi.errors import CheckpointError, KiwiError
from kiwi.media.files import atomic_folder, write_json
from kiwi.models.config import KiwiConfig
from kiwi.models.dit.base import WanBase, read_wan_transformer
from kiwi.models.mllm.encoder import MllmEncoder, QwenVL
from kiwi.models.sampling import EditingDefaults, Sampling
from kiwi.models.tuning import Frozen
from kiwi.models.vae.formats import original_state
from kiwi.models.vae.wan import WanVae, published_config
from kiwi.weights.adapters import merge_adapters, split_adapters, without_base_layer
from kiwi.weights.files import State, lossless_load_dtype, read_json, read_weights, write_weights
from kiwi.weights.hub import locate
from kiwi.weights.strict import require_finite_floats

WEIGHTS = "diffusion_pytorch_model"

PIPELINE_SAMPLING = Sampling(sigma_min=0.003 / 1.002)
"""How the publisher's diffusers pipeline samples, regardless of its scheduler_config.json."""


def import_diffusers(
    source: str,
    changes: Mapping[str, Any],
    folder: Path,
    report: Report,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> None:
    """Convert a published diffusers folder to a model folder; its VAE and MLLM are copied.

    Args:
        source: the folder, or a hub id.
        changes: choices other than the folder's, by dotted path.
        folder: where to write.
        report: called with what was done.
        dtype: of the editor's own parts; None keeps theirs. VAE and MLLM always keep theirs.
        seed: for the initial values of absent parts.

    Raises:
        CheckpointError: a part is missing, or tensors do not match; see `assemble`.
    """
    root = locate(source, "diffusers folder", "name a folder with model_index.json")
    parts = {part: read_weights(root / part) for part in ("transformer", *EMBEDDERS) if (root / part).is_dir()}
    index = read_json(root / "model_index.json") if (root / "model_index.json").is_file() else {}
    if missing := [part for part in PARTS if part in index and not (root / part).is_dir()]:
        raise CheckpointError(
            f"parts of {root} are missing",
            code="missing-part",
            got=f"no {', '.join(missing)}",
            expected="the parts that its model_index.json lists",
        )
    if "transformer" not in parts:
        raise _not_a_diffusers_folder(root, "the folders transformer, vae, ...")
    parts["mllm_encoder"] = read_weights(_encoder_file(root))
    transformer = read_json(root / "transformer/config.json")
    layers = len({name.split(".")[1] for name in parts["transformer"] if name.startswith("blocks.")})
    if transformer.get("num_layers", layers) != layers:
        raise CheckpointError(
            f"{root / 'transformer'} does not hold the number of blocks in its config.json",
            code="missing-block",
            got=layers,
            expected=transformer["num_layers"],
        )
    recorded = {"dit.num_heads": transformer.get("num_attention_heads"), "dit.eps": transformer.get("eps")}
    recorded = {path: value for path, value in recorded.items() if value is not None}
    for path, value in recorded.items():
        if changes.get(path, value) != value:
            report(path, f"{changes[path]}, although the folder records {value}")
    if (root / "ref_embedder").is_dir() and prepends_reference(read_json(root / "ref_embedder/config.json")):
        recorded["reference"] = "PrependReference"
    with tempfile.TemporaryDirectory() as temporary, _naming(root / "mllm_encoder", temporary, report) as named_report:
        mllm = _link_mllm(root, Path(temporary))
        limits = vision_limits(read_json(root / "mllm_encoder/config.json"))
        settings = ImportSettings(
            vae=WanVae(path=str(root / "vae")),
            mllm=QwenVL(path=str(mllm), limits=limits, dtype=lossless_load_dtype(mllm)),
            changes={**recorded, **changes},
            dtype=dtype,
            editing=EditingDefaults(sampling=PIPELINE_SAMPLING),
            seed=seed,
        )
        assemble(from_diffusers_parts(parts), settings, folder, named_report)
    report("sampling", f"as in the publisher's pipeline: steps towards sigma_min {PIPELINE_SAMPLING.sigma_min:.6f}")


def export_diffusers(folder: Path, target: Path, report: Report, dtype: torch.dtype | None = None) -> None:
    """Convert a model folder to a published diffusers folder.

    Args:
        folder: the model folder.
        target: where to write; a model in its place is replaced as a whole.
        report: called with what was done.
        dtype: of the editor's own parts; None keeps theirs. VAE and MLLM always keep theirs.

    Raises:
        CheckpointError: choices that the published code does not have, or an MLLM that is not a Qwen2.5-VL.
        InputError: the folder cannot be written, or holds files that are not a model's.
    """
    config = read_folder_config(folder).config
    require_publishable(config)
    mllm, vae = config.mllm.replace(tuning=Frozen()).build(), config.vae.build()
    if mllm.config.model_type != "qwen2_5_vl":
        raise CheckpointError(
            "the MLLM cannot be part of a published folder",
            code="unsupported-config",
            got=mllm.config.model_type,
            expected="qwen2_5_vl",
        )
    state = read_weights(folder)
    require_finite_floats(state, str(folder))
    merged = {name: tensor for name, tensor in state.items() if not name.startswith(("dit.", "mllm."))}
    merged |= {f"dit.{name}": tensor for name, tensor in _merged_dit(config, state, report).items()}
    parts = to_diffusers_parts({name: tensor.to(dtype or tensor.dtype) for name, tensor in merged.items()})
    settings = {"transformer": transformer_config(config), "mllm_encoder": encoder_config(config, mllm.hidden_size)}
    with atomic_folder(target, unexpected_files) as new:
        _write(new / "vae", original_state(vae.vae), published_config(vae))
        for part, weights in parts.items():
            _write(new / part, weights, settings.get(part, embedder_config(config)))
        language = _merged_mllm(mllm, state, report)
        write_weights({to_hub_name(name): tensor for name, tensor in language.items()}, new / "mllm_encoder")
        mllm.save_processor(new / "processor")
        mllm.config.save_pretrained(new / "processor")
        (new / "processor/config.json").rename(new / "processor/qwen_config.json")
        _write_index(new, config)
    for part in EMBEDDERS.keys() - parts.keys():
        report(part, "left out: the model has none")
    report("pipeline code", "not written: copy the publisher's .py files into the folder")


def _merged_dit(config: KiwiConfig, state: State, report: Report) -> State:
    """The DiT's tensors (names without `dit.`), adapters merged, and a text embedding of zeros."""
    plain = {without_base_layer(n).removeprefix("dit."): t for n, t in state.items() if n.startswith("dit.")}
    weights, adapters = split_adapters(plain)
    if isinstance(config.dit.base, WanBase):
        weights = read_wan_transformer(config.dit.base.path, config.dit.base.subfolder)
    if adapters:
        report("dit", f"{len(adapters) // 2} adapters merged")
    zeros = zero_text_embedding(config.dit.dim, weights["patch_embedding.weight"].dtype)
    return merge_adapters(weights, adapters) | zeros


def _merged_mllm(mllm: MllmEncoder, state: State, report: Report) -> State:
    """The MLLM's tensors, adapters merged, including those that the editor trained."""
    trained, adapters = split_adapters(
        {name.removeprefix("mllm.model."): t for name, t in state.items() if name.startswith("mllm.")}
    )
    if adapters:
        report("mllm", f"{len(adapters) // 2} adapters merged")
    return merge_adapters({**mllm.model.state_dict(), **trained}, adapters)


def _link_mllm(root: Path, folder: Path) -> Path:
    """Lay the MLLM of a published folder out as transformers expects it, with links instead of copies.

    Raises:
        CheckpointError: there is no configuration or there are no weights.
    """
    encoder, processor = root / "mllm_encoder", root / "processor"
    if not (processor / "qwen_config.json").is_file():
        raise _not_a_diffusers_folder(root, "processor/qwen_config.json")
    for file in processor.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    for file in encoder.glob("model*.safetensors*"):
        (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").symlink_to((processor / "qwen_config.json").resolve())
    return folder


def _not_a_diffusers_folder(root: Path, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{root} is not a published diffusers folder", code="not-a-diffusers-folder", expected=expected
    )


@contextmanager
def _naming(folder: Path, temporary: str, report: Report) -> Iterator[Report]:
    """Reports and errors that name the folder of a part instead of a temporary folder that is deleted afterwards."""
    try:
        yield lambda part, text: report(part, text.replace(temporary, str(folder)))
    except KiwiError as problem:
        raise CheckpointError(str(problem).replace(temporary, str(folder)), code=problem.code) from problem


def _encoder_file(root: Path) -> Path:
    """The file with queries and connectors, which share their folder with the MLLM's weights."""
    index = root / "mllm_encoder" / f"{WEIGHTS}.safetensors.index.json"
    return index if index.is_file() else root / "mllm_encoder" / f"{WEIGHTS}.safetensors"


def _write_index(folder: Path, config: KiwiConfig) -> None:
    """Write model_index.json and the scheduler's configuration, which the published pipeline ships but does not use."""
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
