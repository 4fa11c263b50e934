"""From the tensors of another format to a model folder: sizes come from shapes, absent parts get initial values.

The DiT is never built for this: names and shapes come from modules on the meta device, and tensors are memory-mapped
files, so a model larger than memory can be converted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kiwi.checkpoints.folder import names_to_save, write_folder
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
from kiwi.weights.adapters import is_adapter, merge_adapters, rank_and_targets, split_adapters, with_base_layer
from kiwi.weights.files import Shapes, State
from kiwi.weights.hub import is_hub_id
from kiwi.weights.strict import compare_shapes, fingerprint, load_strict, require_finite_floats, shapes_of

OPTIONAL_GROUPS = (
    "query.queries.image", "query.queries.video", "query.queries.reference", "query.connector.", "latent.connector.",
    "source.", "reference.",
)  # fmt: skip
"""Tensors that the checkpoint of an earlier training stage may lack, each group as a whole; half a group is damage."""

SETTABLE = (
    "dit.num_heads", "dit.eps", "query.readout", "query.image", "query.video", "query.reference", "reference",
    "mllm.limits", "vae.tiling", "schedule",
)  # fmt: skip
"""Choices that a checkpoint does not record, or that shapes verify. Changing any other would contradict the training:
gamma(t), or the layers that a connector reads, leave no trace in names and shapes."""

_SETTABLE_FOR_BASE = (
    "dit", "query", "latent", "source", "reference", "mllm.limits", "mllm.tuning", "vae.tiling", "schedule",
)  # fmt: skip
"""Choices of an editor that starts from base weights; VAE and MLLM have options of their own."""

Report = Callable[[str, str], None]
"""Called with the name of a part and what was done with it."""


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Where the parts come from that a checkpoint does not hold, and the choices that it does not record.

    Args:
        vae: the VAE.
        mllm: the MLLM, without adapters.
        base: the DiT's base model, for checkpoints without a DiT or with adapters of one.
        changes: choices by dotted path, such as `{"dit.num_heads": 24}` (by default 128 channels a head, as in every
            Wan model) or `{"reference": "PrependReference"}` (by default appended where the checkpoint has a reference
            embedding, otherwise none: zero tokens would still be attended to). Allowed are those of SETTABLE, and
            those of a part (source, latent, query) of which the checkpoint holds nothing.
        adapters: "merge" them into the weights, or "keep" them beside.
        self_contained: copy VAE and MLLM from local folders; hub ids stay names.
        dtype: of the editor's own weights, adapters included; None keeps theirs. VAE and MLLM always keep theirs.
        editing: the defaults of `kiwi edit`.
        seed: for the initial values of absent parts.
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
    """Write the model folder of a checkpoint.

    Args:
        checkpoint: its tensors under this package's names, adapters included, without `text_embedding`.
        settings: what it does not hold.
        folder: where to write; a model in its place is replaced as a whole.
        report: called with what was done.

    Raises:
        CheckpointError: missing, unexpected and mismatched tensors, all by name; tensors that are not finite floats;
            neither a DiT nor a base model; adapters that cannot be kept.
        SpecError: a choice that cannot be set, or a value out of range.
    """
    _require_settable(settings.changes, checkpoint)
    require_finite_floats(checkpoint, "the checkpoint")
    mllm, vae = settings.mllm.build(), settings.vae.build()
    dit, dit_state, base = _assemble_dit(_part(checkpoint, "dit."), settings, report)
    mllm_spec, mllm_state, mllm_changed = _assemble_mllm(_part(checkpoint, "mllm."), mllm, settings, report)
    has_reference = any(name.startswith("reference.") for name in checkpoint)
    published = KiwiConfig(
        dit=dit,
        vae=settings.vae,
        mllm=mllm_spec,
        query=QueryConnector(readout="tail").replace(**_num_queries(checkpoint)),
        reference=AppendReference() if has_reference else NoReference(),
    )
    config = override(published, dict(settings.changes))
    mllm.check_layers((*getattr(config.query, "layers", ()), *getattr(config.latent, "layers", ())))
    report("reference", type(config.reference).__name__ + ("" if has_reference else ": not in the checkpoint"))
    state = {name: tensor for name, tensor in checkpoint.items() if not name.startswith(("dit.", "mllm."))}
    state |= {f"dit.{name}": tensor for name, tensor in dit_state.items()}
    state |= {f"mllm.{name}": tensor for name, tensor in mllm_state.items()}
    state = _unify_dtypes(state, settings.dtype, report)
    state |= _initial_values(config, mllm.hidden_size, state, settings.seed, report)
    compare_shapes(expected_shapes(config, mllm), shapes_of(state)).raise_if_any("the checkpoint")

    bases, savers = {"vae": vae.fingerprint, "mllm": mllm.fingerprint}, {}
    if isinstance(config.dit.base, WanBase):
        bases["dit"] = base
    for part, spec, save in (("vae", settings.vae, vae.save), ("mllm", settings.mllm, mllm.save)):
        path = getattr(spec, "path", "")
        if (part == "mllm" and mllm_changed) or not path or (settings.self_contained and Path(path).exists()):
            savers[part] = save
            del bases[part]
        report(part, f"copied from {path or 'new weights'}" if part in savers else f"named: {path}")
    write_folder(folder, config, settings.editing, state, bases, savers)


def expected_shapes(config: KiwiConfig, mllm: MllmEncoder) -> Shapes:
    """Names and shapes of model.safetensors for a configuration, from modules on the meta device."""
    without_base = config.replace(dit=config.dit.replace(base=NewBase()))
    shapes: Shapes = {}
    with torch.device("meta"):
        for part, build in without_base.builders(mllm.hidden_size).items():
            shapes |= {f"{part}.{name}": shape for name, shape in shapes_of(build().state_dict()).items()}
        language = type(mllm.model)(mllm.model.config).language_model
    config.mllm.tuning.apply(language, LORA_TARGETS)
    shapes |= {f"mllm.model.language_model.{name}": shape for name, shape in shapes_of(language.state_dict()).items()}
    return {name: shapes[name] for name in names_to_save(config, shapes)}


def infer_dit_config(shapes: Shapes, changes: Mapping[str, Any], report: Report) -> DiTConfig:
    """Infer a DiT's sizes from the shapes of all its tensors (names without `dit.`).

    Args:
        shapes: by name.
        changes: choices by dotted path, including `dit.num_heads` if known: shapes do not show it.
        report: called if the number of heads is assumed.

    Raises:
        CheckpointError: a tensor that determines a size is missing, the blocks are not numbered from 0 without a gap,
            or the number of heads is unknown.
        SpecError: sizes that no DiT can have.
    """
    names = ("patch_embedding.weight", "blocks.0.ffn.0.weight", "time_embedding.0.weight")
    patch, ffn, time = (shapes.get(name, ()) for name in names)
    if (len(patch), len(ffn), len(time)) != (5, 2, 2):
        raise CheckpointError(
            "the tensors are not those of a whole Wan transformer",
            code="not-a-wan-transformer",
            got=", ".join(f"{name} {shapes.get(name, 'missing')}" for name in names),
        )
    blocks = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    # Checked before a DiT of max(blocks) + 1 layers is made.
    if gaps := set(range(len(blocks))) - blocks:
        raise CheckpointError(
            "the DiT's blocks are not numbered without a gap",
            code="missing-block",
            got=f"{len(blocks)} blocks, the last of them {max(blocks)}, and none of number {min(gaps)}",
        )
    dim = patch[0]
    if "dit.num_heads" not in changes:
        if dim % 128:
            raise CheckpointError(
                "the number of attention heads of the DiT is unknown",
                code="unknown-heads",
                got=f"width {dim}, not a multiple of Wan's 128 channels a head",
                fix="set it: --set dit.num_heads=N",
            )
        report("dit.num_heads", f"assumed {dim // 128}, 128 channels a head; set it with --set dit.num_heads=N")
    sizes = {
        "dim": dim,
        "ffn_dim": ffn[0],
        "num_heads": changes.get("dit.num_heads", dim // 128),
        "num_layers": len(blocks),
        "freq_dim": time[1],
        "latent_channels": patch[1],
        "patch_size": patch[2:],
    }
    config: DiTConfig = from_dict(DiTConfig, sizes, "dit")
    return config


def _require_settable(changes: Mapping[str, Any], checkpoint: Mapping[str, Tensor]) -> None:
    """Refuse changes of choices that the checkpoint was trained with but does not record."""
    parts = {name.split(".")[0] for name in checkpoint}
    absent = [part for part in ("source", "latent", "query") if part not in parts]
    allowed = _SETTABLE_FOR_BASE if parts <= {"dit"} else (*SETTABLE, *absent)
    if wrong := [path for path in changes if not any(f"{path}.".startswith(f"{choice}.") for choice in allowed)]:
        raise SpecError(
            f"{', '.join(wrong)} cannot be set",
            code="fixed-choice",
            got="a checkpoint that was trained with this choice, or a part with an option of its own",
            expected=f"one of {', '.join(allowed)}",
        )


def _assemble_dit(state: State, settings: ImportSettings, report: Report) -> tuple[DiTConfig, State, str]:
    """The DiT's config, its tensors in model.safetensors, and the fingerprint of a base model that stays outside."""
    weights, adapters = split_adapters(state)
    base = None if weights else settings.base
    if not weights:
        if base is None:
            raise CheckpointError(
                "the checkpoint needs the base model that it was trained from",
                code="missing-base-model",
                got=f"{len(adapters)} tensors of adapters and no weights" if adapters else "no DiT",
                fix="give it with --base: a folder or file of Wan weights, or a hub id",
            )
        weights = read_wan_transformer(base.path, base.subfolder)
        require_finite_floats(weights, f"the base model {base.path}")
        report("dit", f"weights of the base model {base.path}")
    config = infer_dit_config(shapes_of(weights), settings.changes, report)
    if not adapters:
        return config, weights, ""
    report("dit", f"{_count_adapters(adapters)}: {settings.adapters}")
    if settings.adapters == "merge":
        return config, merge_adapters(weights, adapters), ""
    config = config.replace(tuning=_lora_of(weights, adapters))
    if base is not None and is_hub_id(base.path) and not Path(base.path).exists():
        return config.replace(base=base), adapters, fingerprint(weights)
    return config, {with_base_layer(name, adapters): tensor for name, tensor in weights.items()} | adapters, ""


def _assemble_mllm(
    state: State, mllm: MllmEncoder, settings: ImportSettings, report: Report
) -> tuple[MllmSpec, State, bool]:
    """The MLLM's spec, its tensors in model.safetensors, and whether the weights of `mllm` were changed."""
    trained, adapters = split_adapters(state)
    weights = {f"model.{name}": tensor for name, tensor in mllm.model.state_dict().items()}
    if unknown := sorted(trained.keys() - weights.keys()):
        raise CheckpointError(
            "the checkpoint was trained with another MLLM",
            code="mismatched-weights",
            got=f"unexpected {', '.join(unknown[:5])}",
        )
    weights |= trained
    spec = settings.mllm
    merge = bool(adapters) and settings.adapters == "merge"
    if adapters:
        report("mllm", f"{_count_adapters(adapters)}: {settings.adapters}")
        if merge:
            weights = merge_adapters(weights, adapters)
        else:
            spec = spec.replace(tuning=_lora_of(weights, adapters, within="model.language_model."))
    if trained or merge:
        plain = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        load_strict(mllm.model, plain, "the checkpoint's MLLM")
    return spec, adapters if settings.adapters == "keep" else {}, bool(trained) or merge


def _lora_of(weights: State, adapters: State, within: str = "") -> Lora:
    """The spec of adapters that stay beside the weights.

    Layers outside the prefix `within` need no adapters: the vision tower is always frozen, though some of its layers
    have the same names as those of the language model.
    """
    meta_weights, meta_adapters = ({n: t.to("meta") for n, t in state.items()} for state in (weights, adapters))
    merge_adapters(meta_weights, meta_adapters)  # raises if they do not match
    rank, targets = rank_and_targets({n: t for n, t in weights.items() if n.startswith(within)}, adapters)
    return Lora(rank=rank, targets=targets)


def _num_queries(checkpoint: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of queries for each task kind that the checkpoint has queries for."""
    tables = {kind: checkpoint.get(f"query.queries.{kind}") for kind in ("image", "video", "reference")}
    return {kind: len(table) for kind, table in tables.items() if table is not None}


def _unify_dtypes(state: Mapping[str, Tensor], dtype: torch.dtype | None, report: Report) -> State:
    """Convert every part to one dtype: the given one, or the widest of its tensors but at most float32.

    Adapters are a part of their own, because peft casts their inputs to their dtype.
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
            report(part, f"{listed} in the checkpoint: all as {target}".replace("torch.", ""))
            unified |= {name: state[name].to(target) for name in names}
    return unified


def _initial_values(config: KiwiConfig, mllm_dim: int, state: Mapping[str, Tensor], seed: int, report: Report) -> State:
    """Initial values of the groups that the checkpoint lacks as a whole, in the dtype of the rest of their part."""
    added: State = {}
    for group in OPTIONAL_GROUPS:
        if any(name.startswith(group) for name in state):
            continue
        part = group.split(".")[0]
        with forked_rng(seed, part):
            module = config.builders(mllm_dim)[part]()
        rest = next((tensor for name, tensor in state.items() if name.startswith(f"{part}.")), None)
        dtype = (next(iter(state.values())) if rest is None else rest).dtype
        values = {f"{part}.{name}": value.to(dtype) for name, value in module.state_dict().items()}
        values = {name: value for name, value in values.items() if name.startswith(group)}
        if values:
            report(group.rstrip("."), "not in the checkpoint: initial values")
        added |= values
    return added


def _count_adapters(adapters: State) -> str:
    count = len(adapters) // 2
    return f"{count} adapter{'s' * (count != 1)}"


def _part(state: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
