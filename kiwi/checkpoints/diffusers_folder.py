"""The published diffusers folder: a subfolder per part; MLLM adapters are merged; the VAE has its original names.

The publisher's custom pipeline (Python files) is not part of kiwi and must be copied into a folder written here.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kiwi.checkpoints.assemble import ImportSettings, Report, assemble, drop_replaced_options
from kiwi.checkpoints.diffusers_layout import (
    EMBEDDERS,
    PARTS,
    VERSION,
    from_diffusers_parts,
    make_embedder_config,
    make_encoder_config,
    make_transformer_config,
    prepends_reference,
    read_vision_limits,
    to_diffusers_parts,
    to_hub_name,
)
from kiwi.checkpoints.folder_config import list_unexpected_files
from kiwi.checkpoints.published import make_zero_text_embedding, read_publishable_folder
from kiwi.errors import CheckpointError, KiwiError
from kiwi.media.files import atomic_folder, write_json
from kiwi.models.config import KiwiConfig
from kiwi.models.dit.base import WanBase, read_wan_transformer
from kiwi.models.mllm.encoder import MllmEncoder, QwenVL
from kiwi.models.sampling import EditingDefaults, Sampling
from kiwi.models.tuning import Frozen
from kiwi.models.vae.formats import to_original_state
from kiwi.models.vae.wan import WanVae, make_published_config
from kiwi.weights.adapters import merge_adapters, split_adapters, without_base_layer
from kiwi.weights.files import State, choose_lossless_dtype, read_json, read_weights, write_weights
from kiwi.weights.hub import locate
from kiwi.weights.names import rename, select_prefix

WEIGHTS_STEM = "diffusion_pytorch_model"

PIPELINE_SAMPLING = Sampling(sigma_min=0.003 / 1.002)
"""Sampling settings of the publisher's diffusers pipeline, which ignores scheduler_config.json."""


def import_diffusers(
    source: str,
    changes: Mapping[str, Any],
    folder: Path,
    report: Report,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> None:
    """Convert a published diffusers folder (a path or a hub id) to a model folder; its VAE and MLLM are copied.

    `changes` are options, by dotted path, that replace those in the folder; for the others see `ImportSettings`.

    Raises:
        CheckpointError: a part is missing, or tensors do not match; see `assemble`.
    """
    root = locate(source, "diffusers folder", "pass a folder with model_index.json")
    parts = {part: read_weights(root / part) for part in ("transformer", *EMBEDDERS) if (root / part).is_dir()}
    index = read_json(root / "model_index.json") if (root / "model_index.json").is_file() else {}
    if missing := [part for part in PARTS if part in index and not (root / part).is_dir()]:
        raise CheckpointError(
            f"{root} lacks parts that its model_index.json lists", code="missing-part", got=f"no {', '.join(missing)}"
        )
    if "transformer" not in parts:
        raise _not_a_diffusers_folder(root, "a folder with transformer, vae, ...")
    parts["mllm_encoder"] = read_weights(_find_encoder_file(root))
    transformer = read_json(root / "transformer/config.json")
    layers = len({name.split(".")[1] for name in parts["transformer"] if name.startswith("blocks.")})
    if (expected := transformer.get("num_layers", layers)) != layers:
        message = f"the number of blocks in {root / 'transformer'} differs from its config.json"
        raise CheckpointError(message, code="missing-block", got=layers, expected=expected)
    fields = {"dit.num_heads": "num_attention_heads", "dit.eps": "eps"}
    recorded = {path: transformer[field] for path, field in fields.items() if transformer.get(field) is not None}
    if (root / "ref_embedder").is_dir() and prepends_reference(read_json(root / "ref_embedder/config.json")):
        recorded["reference"] = "PrependReference"
    with tempfile.TemporaryDirectory() as links, _replace_path(links, root / "mllm_encoder", report) as path_report:
        mllm = _link_mllm(root, Path(links))
        limits = read_vision_limits(read_json(root / "mllm_encoder/config.json"))
        settings = ImportSettings(
            vae=WanVae(path=str(root / "vae")),
            mllm=QwenVL(path=str(mllm), limits=limits, dtype=choose_lossless_dtype(mllm)),
            changes={**drop_replaced_options(recorded, changes, report), **changes},
            dtype=dtype,
            editing=EditingDefaults(sampling=PIPELINE_SAMPLING),
            seed=seed,
        )
        assemble(from_diffusers_parts(parts), settings, folder, path_report)
    report("sampling", f"as in the publisher's pipeline: sigma_min {PIPELINE_SAMPLING.sigma_min:.6f}")


def export_diffusers(folder: Path, target: Path, report: Report, dtype: torch.dtype | None = None) -> None:
    """Convert a model folder to a published diffusers folder; an existing folder of either kind is replaced.

    `dtype` is for the editor's own parts; None keeps theirs. VAE and MLLM always keep theirs.

    Raises:
        CheckpointError: the published code does not support the model's options, or the MLLM is not a Qwen2.5-VL.
        InputError: the folder cannot be written, or contains unrelated files.
    """
    config, state = read_publishable_folder(folder)
    mllm, vae = config.mllm.replace(tuning=Frozen()).build(), config.vae.build()
    if mllm.config.model_type != "qwen2_5_vl":
        raise CheckpointError(
            "the published format supports only Qwen2.5-VL", code="unsupported-config", got=mllm.config.model_type
        )
    merged = {name: tensor for name, tensor in state.items() if not name.startswith(("dit.", "mllm."))}
    merged |= {f"dit.{name}": tensor for name, tensor in _merge_dit_adapters(config, state, report).items()}
    parts = to_diffusers_parts({name: tensor.to(dtype or tensor.dtype) for name, tensor in merged.items()})
    configs = {part: make_embedder_config(config) for part in EMBEDDERS}
    configs |= {"transformer": make_transformer_config(config)}
    configs |= {"mllm_encoder": make_encoder_config(config, mllm.hidden_size)}
    with atomic_folder(target, list_unexpected_files) as new:
        _write_part(new / "vae", to_original_state(vae.vae), make_published_config(vae))
        for part, weights in parts.items():
            _write_part(new / part, weights, configs[part])
        language = _merge_mllm_adapters(mllm, state, report)
        write_weights({to_hub_name(name): tensor for name, tensor in language.items()}, new / "mllm_encoder")
        mllm.save_processor(new / "processor")
        mllm.config.save_pretrained(new / "processor")
        (new / "processor/config.json").rename(new / "processor/qwen_config.json")
        _write_index(new, config)
    for part in EMBEDDERS.keys() - parts.keys():
        report(part, "skipped: the model has none")
    report("pipeline code", "not written: copy the publisher's .py files into the folder")


def _merge_dit_adapters(config: KiwiConfig, state: State, report: Report) -> State:
    """Return the DiT's tensors (names without `dit.`) with adapters merged and a text embedding of zeros."""
    weights, adapters = split_adapters(rename(select_prefix(state, "dit."), without_base_layer, "the DiT"))
    if isinstance(config.dit.base, WanBase):
        weights = read_wan_transformer(config.dit.base.path, config.dit.base.subfolder)
    if adapters:
        report("dit", f"{len(adapters) // 2} adapters merged")
    zeros = make_zero_text_embedding(config.dit.dim, weights["patch_embedding.weight"].dtype)
    return merge_adapters(weights, adapters) | zeros


def _merge_mllm_adapters(mllm: MllmEncoder, state: State, report: Report) -> State:
    """Return all tensors of the MLLM with adapters merged; tensors in `state` replace the pretrained ones."""
    trained, adapters = split_adapters(select_prefix(state, "mllm.model."))
    if adapters:
        report("mllm", f"{len(adapters) // 2} adapters merged")
    return merge_adapters({**mllm.model.state_dict(), **trained}, adapters)


def _link_mllm(root: Path, folder: Path) -> Path:
    """Link the MLLM's files of a published folder into `folder` in the layout that transformers expects."""
    config = root / "processor/qwen_config.json"
    if not config.is_file():
        raise _not_a_diffusers_folder(root, "processor/qwen_config.json")
    files = {file.name: file for file in (root / "processor").iterdir() if file.is_file()}
    files |= {file.name: file for file in (root / "mllm_encoder").glob("model*.safetensors*")}
    for name, file in (files | {"config.json": config}).items():
        (folder / name).symlink_to(file.resolve())
    return folder


def _not_a_diffusers_folder(root: Path, expected: str) -> CheckpointError:
    problem = f"{root} is not a published diffusers folder"
    return CheckpointError(problem, code="not-a-diffusers-folder", expected=expected)


@contextmanager
def _replace_path(temporary: str, folder: Path, report: Report) -> Iterator[Report]:
    """Yield a `report` that shows `folder` instead of a temporary folder, and do the same in errors."""
    try:
        yield lambda part, text: report(part, text.replace(temporary, str(folder)))
    except KiwiError as error:
        raise CheckpointError(str(error).replace(temporary, str(folder)), code=error.code) from error


def _find_encoder_file(root: Path) -> Path:
    """Return the weights file of the queries and connectors, which are in the same folder as the MLLM's weights."""
    index = root / "mllm_encoder" / f"{WEIGHTS_STEM}.safetensors.index.json"
    return index if index.is_file() else root / "mllm_encoder" / f"{WEIGHTS_STEM}.safetensors"


def _write_index(folder: Path, config: KiwiConfig) -> None:
    """Write model_index.json, and the scheduler_config.json that the published pipeline contains but does not use."""
    (folder / "scheduler").mkdir()
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": VERSION,
        "shift": config.schedule.shift, "num_train_timesteps": config.schedule.num_train_timesteps,
        "base_shift": 0.5, "max_shift": 1.15,
    }  # fmt: skip
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_class_name": ["pipeline_kiwi_edit", "KiwiEditPipeline"], "_diffusers_version": VERSION}
    write_json(folder / "model_index.json", index | {n: v for n, v in PARTS.items() if (folder / n).is_dir()})


def _write_part(folder: Path, state: State, config: dict[str, Any]) -> None:
    folder.mkdir()
    write_weights(state, folder, WEIGHTS_STEM)
    write_json(folder / "config.json", config)
