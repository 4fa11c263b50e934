"""Convert a checkpoint's tensors to a model folder: sizes are inferred from shapes; missing parts are initialised.

The DiT is never built in memory: names and shapes come from modules on the meta device, and tensors are memory-mapped
files, so a model larger than memory can be converted.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kiwi.checkpoints.folder import must_copy, select_saved_names, write_folder
from kiwi.errors import CheckpointError, SpecError
from kiwi.keyed import forked_rng
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import QueryConnector
from kiwi.models.dit.base import NewBase, WanBase, read_wan_transformer
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.injection import AppendReference, NoReference
from kiwi.models.mllm.encoder import LORA_TARGETS, MllmEncoder, MllmSpec
from kiwi.models.sampling import EditingDefaults
from kiwi.models.tuning import Lora
from kiwi.models.vae.wan import VaeSpec
from kiwi.spec import from_dict, override
from kiwi.weights.adapters import infer_rank_and_targets, is_adapter, merge_adapters, split_adapters, with_base_layer
from kiwi.weights.files import Shapes, State
from kiwi.weights.hub import is_hub_id
from kiwi.weights.lora_files import resolve_layers
from kiwi.weights.names import select_prefix
from kiwi.weights.strict import compare_shapes, fingerprint, load_strict, require_finite_floats, shapes_of

OPTIONAL_GROUPS = (
    "query.queries.image", "query.queries.video", "query.queries.reference", "query.connector.", "latent.connector.",
    "source.", "reference.",
)  # fmt: skip
"""Tensors that the checkpoint of an earlier stage may lack; a group must be entirely present or entirely absent."""

SETTABLE = (
    "dit.num_heads", "dit.eps", "query.readout", "query.image", "query.video", "query.reference", "reference",
    "mllm.limits", "vae.tiling", "schedule",
)  # fmt: skip
"""Options that the user may set: those that a checkpoint does not record or that tensor shapes verify. Other options
(gamma(t), connector layers) must equal those of training, which shapes cannot verify."""

_SETTABLE_FOR_BASE = (
    "dit", "query", "latent", "source", "reference", "mllm.limits", "mllm.tuning", "vae.tiling", "schedule",
)  # fmt: skip
"""Options that the user may set if the checkpoint is only a base model; --vae and --mllm set the VAE and the MLLM."""

Report = Callable[[str, str], None]
"""Callback that receives the name of a part and what was done with it."""


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Sources of the parts that a checkpoint lacks, and values of the options that it does not record.

    Args:
        vae: the VAE.
        mllm: the MLLM, without adapters.
        base: the DiT's base model, for checkpoints that hold no DiT or only adapters for one.
        changes: options to set, by dotted path, such as `{"dit.num_heads": 24}` (default: 128 channels per head, as in
            every Wan model) or `{"reference": "PrependReference"}` (default: AppendReference if the checkpoint has a
            reference embedding, otherwise NoReference). The options in SETTABLE are allowed, and those of a part
            (source, latent, query) that the checkpoint lacks entirely.
        adapters: whether LoRA adapters are merged into the weights or kept separate.
        self_contained: copy VAE and MLLM from local folders into the model folder; hub ids are never copied.
        dtype: dtype for the editor's own weights and adapters; None keeps each part's. VAE and MLLM keep theirs.
        editing: defaults of `kiwi edit` for this model.
        seed: seed for initialising missing parts.
    """

    vae: VaeSpec
    mllm: MllmSpec
    base: WanBase | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    adapters: Literal["merge", "keep"] = "merge"
    self_contained: bool = True
    dtype: torch.dtype | None = None
    editing: EditingDefaults = field(default_factory=EditingDefaults)
    seed: int = 0


def assemble(checkpoint: Mapping[str, Tensor], settings: ImportSettings, folder: Path, report: Report) -> None:
    """Write a checkpoint as a model folder; an existing model folder is replaced.

    Args:
        checkpoint: tensors by kiwi's names, adapters included, without `text_embedding`.
        settings: sources of the parts that the checkpoint lacks, and options to set.
        folder: output folder.
        report: called with the name of each part and what was done with it.

    Raises:
        CheckpointError: tensors are missing, unexpected or of the wrong shape, or are not finite floats; there is
            neither a DiT nor a base model; or the adapters cannot be kept separate.
        SpecError: an option cannot be set, or its value is out of range.
    """
    _require_settable(settings.changes, checkpoint)
    require_finite_floats(checkpoint, "the checkpoint")
    mllm, vae = settings.mllm.build(), settings.vae.build()
    dit, dit_state, base_fingerprint = _assemble_dit(select_prefix(checkpoint, "dit."), settings, report)
    mllm_spec, mllm_state, mllm_changed = _assemble_mllm(select_prefix(checkpoint, "mllm."), mllm, settings, report)
    has_reference = any(name.startswith("reference.") for name in checkpoint)
    tables = select_prefix(checkpoint, "query.queries.")
    num_queries = {kind: len(tables[kind]) for kind in ("image", "video", "reference") if kind in tables}
    query = QueryConnector(readout="tail").replace(**num_queries)
    # Without an embedding, reference tokens would be zero but still attended to.
    reference = AppendReference() if has_reference else NoReference()
    default_config = KiwiConfig(dit=dit, vae=settings.vae, mllm=mllm_spec, query=query, reference=reference)
    config = override(default_config, dict(settings.changes))
    mllm.check_layers((*getattr(config.query, "layers", ()), *getattr(config.latent, "layers", ())))
    report("reference", type(config.reference).__name__ + ("" if has_reference else ": not in the checkpoint"))
    state = {name: tensor for name, tensor in checkpoint.items() if not name.startswith(("dit.", "mllm."))}
    state |= {f"dit.{name}": tensor for name, tensor in dit_state.items()}
    state |= {f"mllm.{name}": tensor for name, tensor in mllm_state.items()}
    state = _unify_dtypes(state, settings.dtype, report)
    state |= _initialise_missing(config, mllm.hidden_size, state, settings.seed, report)
    compare_shapes(_compute_expected_shapes(config, mllm), shapes_of(state)).raise_if_any("the checkpoint")

    savers = {"vae": vae.save} if must_copy(settings.vae, settings.self_contained) else {}
    if mllm_changed or must_copy(settings.mllm, settings.self_contained):
        savers["mllm"] = mllm.save
    for part, spec in (("vae", settings.vae), ("mllm", settings.mllm)):
        path = getattr(spec, "path", None)
        copied = "initialised" if path is None else f"copied from {path}"
        report(part, copied if part in savers else f"referenced by path {path}")
    fingerprints = {"vae": vae.fingerprint, "mllm": mllm.fingerprint}
    base_fingerprints = {part: fingerprints[part] for part in fingerprints if part not in savers}
    if isinstance(config.dit.base, WanBase):
        base_fingerprints["dit"] = base_fingerprint
    write_folder(folder, config, settings.editing, state, base_fingerprints, savers)


def _compute_expected_shapes(config: KiwiConfig, mllm: MllmEncoder) -> Shapes:
    """Return the names and shapes of the tensors in model.safetensors, using modules on the meta device."""
    without_base = config.replace(dit=config.dit.replace(base=NewBase()))
    shapes: Shapes = {}
    with torch.device("meta"):
        for part, build in without_base.builders(mllm.hidden_size).items():
            shapes |= {f"{part}.{name}": shape for name, shape in shapes_of(build().state_dict()).items()}
        language = type(mllm.model)(mllm.model.config).language_model
    config.mllm.tuning.apply(language, LORA_TARGETS)
    shapes |= {f"mllm.model.language_model.{name}": shape for name, shape in shapes_of(language.state_dict()).items()}
    return {name: shapes[name] for name in select_saved_names(config, shapes)}


def drop_replaced_options(recorded: Mapping[str, Any], changes: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Drop recorded options that the user sets, or that lie inside one that the user sets; report those that differ."""
    for path, value in recorded.items():
        if changes.get(path, value) != value:
            report(path, f"{changes[path]}, although the checkpoint records {value}")
    return {path: value for path, value in recorded.items() if not _is_within(path, changes)}


def _infer_dit_config(shapes: Shapes, changes: Mapping[str, Any], report: Report) -> DiTConfig:
    """Infer a DiT's sizes from the shapes of its tensors, and its heads from `changes`, as shapes do not show them."""
    names = ("patch_embedding.weight", "blocks.0.ffn.0.weight", "time_embedding.0.weight")
    patch, ffn, time = (shapes.get(name, ()) for name in names)
    if (len(patch), len(ffn), len(time)) != (5, 2, 2):
        raise CheckpointError(
            "the tensors are not those of a complete Wan transformer",
            code="not-a-wan-transformer",
            got=", ".join(f"{name} {shapes.get(name, 'missing')}" for name in names),
        )
    blocks = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    # Checked here, because building a DiT of max(blocks) + 1 layers could exhaust the memory.
    if gaps := set(range(len(blocks))) - blocks:
        got = f"{len(blocks)} blocks, highest index {max(blocks)}, missing index {min(gaps)}"
        raise CheckpointError("the block numbers of the DiT have a gap", code="missing-block", got=got)
    dim = patch[0]
    if "dit.num_heads" not in changes:
        if dim % 128:
            raise CheckpointError(
                "the number of attention heads of the DiT is unknown",
                code="unknown-heads",
                got=f"width {dim}, not a multiple of Wan's 128 channels per head",
                fix="set it: --set dit.num_heads=N",
            )
        report("dit.num_heads", f"assumed {dim // 128}, 128 channels per head; change it with --set dit.num_heads=N")
    sizes = {"dim": dim, "ffn_dim": ffn[0], "num_heads": changes.get("dit.num_heads", dim // 128)}
    sizes |= {"num_layers": len(blocks), "freq_dim": time[1], "latent_channels": patch[1], "patch_size": patch[2:]}
    config: DiTConfig = from_dict(DiTConfig, sizes, "dit")
    return config


def _require_settable(changes: Mapping[str, Any], checkpoint: Mapping[str, Tensor]) -> None:
    """Raise if `changes` sets an option fixed by training."""
    parts = {name.split(".")[0] for name in checkpoint}
    absent = [part for part in ("source", "latent", "query") if part not in parts]
    allowed = _SETTABLE_FOR_BASE if parts <= {"dit"} else (*SETTABLE, *absent)
    if rejected := [path for path in changes if not _is_within(path, allowed)]:
        raise SpecError(
            f"{', '.join(rejected)} cannot be set",
            code="reserved-option",
            got="an option that training has fixed, or that --vae or --mllm sets",
            expected=f"one of {', '.join(allowed)}",
        )


def _is_within(path: str, options: Iterable[str]) -> bool:
    """Whether a dotted path is one of the options or lies inside one."""
    return any(f"{path}.".startswith(f"{option}.") for option in options)


def _assemble_dit(state: State, settings: ImportSettings, report: Report) -> tuple[DiTConfig, State, str]:
    """Return the DiT's config, its tensors to save, and the fingerprint of a referenced base model (otherwise "")."""
    weights, adapters = split_adapters(state)
    base = None if weights else settings.base
    if base is not None:
        weights = read_wan_transformer(base.path, base.subfolder)
        require_finite_floats(weights, f"the base model {base.path}")
        report("dit", f"weights from the base model {base.path}")
    elif not weights:
        raise CheckpointError(
            "the checkpoint requires the base model that it was trained from",
            code="missing-base-model",
            got=f"{len(adapters) // 2} adapters for the DiT, but no weights" if adapters else "no DiT",
            fix="pass --base with a folder or file of Wan weights, or a hub id",
        )
    config = _infer_dit_config(shapes_of(weights), settings.changes, report)
    if not adapters:
        return config, weights, ""
    adapters = resolve_layers(adapters, weights)
    _report_adapters("dit", adapters, settings, report)
    if settings.adapters == "merge":
        return config, merge_adapters(weights, adapters), ""
    config = config.replace(tuning=_infer_lora_spec(weights, adapters))
    if base is not None and is_hub_id(base.path) and not Path(base.path).exists():
        return config.replace(base=base), adapters, fingerprint(weights)
    return config, {with_base_layer(name, adapters): tensor for name, tensor in weights.items()} | adapters, ""


def _assemble_mllm(
    state: State, mllm: MllmEncoder, settings: ImportSettings, report: Report
) -> tuple[MllmSpec, State, bool]:
    """Return the MLLM's spec, its tensors in model.safetensors, and whether the weights of `mllm` were changed."""
    trained, adapters = split_adapters(state)
    weights = {f"model.{name}": tensor for name, tensor in mllm.model.state_dict().items()}
    if unknown := sorted(trained.keys() - weights.keys()):
        got = f"unexpected tensors {', '.join(unknown[:5])}"
        raise CheckpointError("the checkpoint was trained with another MLLM", code="mismatched-weights", got=got)
    weights |= trained
    spec, kept = settings.mllm, adapters if settings.adapters == "keep" else {}
    if adapters:
        _report_adapters("mllm", adapters, settings, report)
    if kept:
        spec = spec.replace(tuning=_infer_lora_spec(weights, kept, layer_prefix="model.language_model."))
    changed = bool(trained) or len(kept) < len(adapters)
    if changed:
        merged = weights if kept else merge_adapters(weights, adapters)
        load_strict(mllm.model, select_prefix(merged, "model."), "the checkpoint's MLLM")
    return spec, kept, changed


def _infer_lora_spec(weights: State, adapters: State, layer_prefix: str = "") -> Lora:
    """Infer the spec of adapters that are kept separate from the weights.

    Only layers whose names start with `layer_prefix` must have adapters: the vision tower is always frozen, although
    some of its layers are named like layers of the language model.
    """
    meta_weights, meta_adapters = ({n: t.to("meta") for n, t in state.items()} for state in (weights, adapters))
    merge_adapters(meta_weights, meta_adapters)  # raises if they do not match
    rank, targets = infer_rank_and_targets({n: t for n, t in weights.items() if n.startswith(layer_prefix)}, adapters)
    return Lora(rank=rank, targets=targets)


def _unify_dtypes(state: Mapping[str, Tensor], dtype: torch.dtype | None, report: Report) -> State:
    """Convert each part to one dtype: `dtype` if given, otherwise the widest in the part, but at most float32.

    Adapters count as a separate part, because peft casts their inputs to their dtype.
    """
    parts: dict[tuple[str, bool], list[str]] = {}
    for name in state:
        parts.setdefault((name.split(".")[0], is_adapter(name)), []).append(name)
    unified = dict(state)
    for (part, _), names in parts.items():
        dtypes = {state[name].dtype for name in names}
        widest = reduce(torch.promote_types, dtypes)
        target = dtype or (torch.float32 if widest == torch.float64 else widest)
        if dtypes != {target}:
            listed = " and ".join(sorted(map(str, dtypes)))
            report(part, f"converted from {listed} to {target}".replace("torch.", ""))
            unified |= {name: state[name].to(target) for name in names}
    return unified


def _initialise_missing(config: KiwiConfig, mllm_dim: int, state: State, seed: int, report: Report) -> State:
    """Initialise the groups in OPTIONAL_GROUPS that `state` lacks, in the dtype of the other tensors of their part."""
    added: State = {}
    for group in OPTIONAL_GROUPS:
        if any(name.startswith(group) for name in state):
            continue
        part = group.split(".")[0]
        with forked_rng(seed, part):
            module = config.builders(mllm_dim)[part]()
        same_part = next((tensor for name, tensor in state.items() if name.startswith(f"{part}.")), None)
        dtype = (next(iter(state.values())) if same_part is None else same_part).dtype
        initial = {f"{part}.{name}": value for name, value in module.state_dict().items()}
        if values := {name: value.to(dtype) for name, value in initial.items() if name.startswith(group)}:
            report(group.rstrip("."), "not in the checkpoint: initialised")
        added |= values
    return added


def _report_adapters(part: str, adapters: State, settings: ImportSettings, report: Report) -> None:
    count, outcome = len(adapters) // 2, "merged" if settings.adapters == "merge" else "kept separate"
    report(part, f"{count} adapter{'s' * (count != 1)} {outcome}")
