"""From the tensors of another format to a model folder: sizes from shapes, what is absent filled, all else strict.

The DiT is never built for it: names and shapes come from modules without storage (the meta device), and tensors
are mapped files, so that a model larger than memory can be converted.
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
from kiwi.weights.adapters import is_adapter, merge_adapters, rank_and_targets, with_base_layer
from kiwi.weights.files import Shapes, State
from kiwi.weights.hub import is_hub_id
from kiwi.weights.strict import compare_shapes, fingerprint, load_strict, require_finite_floats, shapes_of

FILLED = (
    "query.queries.image",
    "query.queries.video",
    "query.queries.reference",
    "query.connector.",
    "latent.connector.",
    "source.",
    "reference.",
)
"""What an earlier stage's checkpoint may lack. Each is filled as a whole; one that is there in part is damage."""

FREE = (
    "dit.num_heads",
    "dit.eps",
    "query.readout",
    "query.image",
    "query.video",
    "query.reference",
    "reference",
    "mllm.limits",
    "vae.tiling",
    "schedule",
)
"""Choices that no checkpoint says, or that the shapes of its tensors are held against. All others would relabel what
was trained: gamma(t), or the layers that a connector reads, leave no trace in names and shapes."""

_NEW = ("dit", "query", "latent", "source", "reference", "mllm.limits", "mllm.tuning", "vae.tiling", "schedule")
"""Choices of an editor that starts from base weights; VAE and MLLM have options of their own."""

Report = Callable[[str, str], None]
"""Told what was done: a part, and what became of it."""


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Where the parts come from that a checkpoint does not hold, and what it does not say.

    Args:
        vae: the VAE.
        mllm: the MLLM, without adapters.
        base: the DiT's base model, for checkpoints without a DiT or with adapters of one.
        changes: choices that the checkpoint does not say, by dotted path, such as `{"dit.num_heads": 24}` (the default
            is 128 channels a head, as in every Wan model) or `{"reference": "PrependReference"}` (the default is
            appended where the checkpoint has an embedding for it, else none: zero tokens would still be attended to).
            Those of FREE, and those of a part (source, latent, query) of which the checkpoint holds nothing.
        adapters: "merge" them into the weights, or "keep" them beside.
        self_contained: copy VAE and MLLM from local folders; what has a hub id stays a name.
        dtype: of the editor's own weights, adapters too; None keeps theirs. VAE and MLLM keep theirs always.
        editing: defaults of `kiwi edit`.
        seed: of the initial values of what is absent.
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


def assemble(state: Mapping[str, Tensor], origin: ImportSettings, folder: Path, report: Report) -> None:
    """Write the model folder of a checkpoint.

    Args:
        state: the checkpoint's tensors under our names, adapters among them, `text_embedding` not.
        origin: what it does not hold.
        folder: to be written; what stood there is replaced as a whole.
        report: told what was done.

    Raises:
        CheckpointError: every missing, unexpected and misshapen tensor by name, and those that are no finite
            floating-point numbers; no DiT and no base model; adapters that cannot be kept.
        SpecError: a choice that is not free, or out of range.
    """
    _require_free(origin.changes, state)
    require_finite_floats(state, "the checkpoint")
    mllm, vae = origin.mllm.build(), origin.vae.build()
    dit, dit_state, base = _dit(_within(state, "dit."), origin, report)
    mllm_spec, mllm_state, mllm_merged = _mllm(_within(state, "mllm."), mllm, origin, report)
    has_reference = any(name.startswith("reference.") for name in state)
    published = KiwiConfig(
        dit=dit,
        vae=origin.vae,
        mllm=mllm_spec,
        query=QueryConnector(readout="tail").replace(**_counts(state)),
        reference=AppendReference() if has_reference else NoReference(),
    )
    config = override(published, dict(origin.changes))
    mllm.check_layers((*getattr(config.query, "layers", ()), *getattr(config.latent, "layers", ())))
    report("reference", type(config.reference).__name__ + ("" if has_reference else ": not in the checkpoint"))
    own = {name: tensor for name, tensor in state.items() if not name.startswith(("dit.", "mllm."))}
    own |= {f"dit.{name}": tensor for name, tensor in dit_state.items()}
    own |= {f"mllm.{name}": tensor for name, tensor in mllm_state.items()}
    own = _of_one_type(own, origin.dtype, report)
    own |= _filled(config, mllm.hidden_size, own, origin.seed, report)
    compare_shapes(expected(config, mllm), shapes_of(own)).raise_if_any("the checkpoint")

    bases, saves = {"vae": vae.fingerprint, "mllm": mllm.fingerprint}, {}
    if isinstance(config.dit.base, WanBase):
        bases["dit"] = base
    copied = {"vae": vae.save, "mllm": mllm.save}
    for part, spec in (("vae", origin.vae), ("mllm", origin.mllm)):
        path = getattr(spec, "path", "")
        if (part == "mllm" and mllm_merged) or not path or (origin.self_contained and Path(path).exists()):
            saves[part] = copied[part]
            del bases[part]
        report(part, f"copied from {path or 'new weights'}" if part in saves else f"named: {path}")
    write_folder(folder, config, origin.editing, own, bases, saves)


def expected(config: KiwiConfig, mllm: MllmEncoder) -> Shapes:
    """Names and shapes of model.safetensors for a configuration, from modules without storage."""
    bare = config.replace(dit=config.dit.replace(base=NewBase()))
    shapes: Shapes = {}
    with torch.device("meta"):
        for part, build in bare.builders(mllm.hidden_size).items():
            shapes |= {f"{part}.{name}": shape for name, shape in shapes_of(build().state_dict()).items()}
        language = type(mllm.model)(mllm.model.config).language_model
    config.mllm.tuning.apply(language, LORA_TARGETS)
    shapes |= {f"mllm.model.language_model.{name}": shape for name, shape in shapes_of(language.state_dict()).items()}
    return {name: shapes[name] for name in names_to_save(config, shapes)}


def dit_config(shapes: Shapes, changes: Mapping[str, Any], report: Report) -> DiTConfig:
    """A DiT's sizes from the shapes of its tensors (names without `dit.`).

    Args:
        shapes: of all its tensors.
        changes: choices, `dit.num_heads` among them if it is known: no tensor tells it.
        report: told when it is assumed.

    Raises:
        CheckpointError: a tensor that tells a size is absent, blocks are not counted from 0 without a gap, or nothing
            tells the number of heads.
        SpecError: sizes that no DiT can have.
    """
    names = ("patch_embedding.weight", "blocks.0.ffn.0.weight", "time_embedding.0.weight")
    patch, ffn, time = (shapes.get(name, ()) for name in names)
    if (len(patch), len(ffn), len(time)) != (5, 2, 2):
        got = ", ".join(f"{name} {shapes.get(name, 'missing')}" for name in names)
        raise CheckpointError("this is not a whole Wan transformer", got=got)
    blocks = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    # Before a DiT of max(blocks) + 1 layers is made.
    if blocks != set(range(len(blocks))):
        missing = min(set(range(len(blocks))) - blocks)
        got = f"{len(blocks)} blocks, the last of them {max(blocks)}, and none of number {missing}"
        raise CheckpointError("the DiT's blocks are not numbered without a gap", got=got)
    sizes = {
        "dim": patch[0],
        "ffn_dim": ffn[0],
        "num_heads": _num_heads(patch[0], changes, report),
        "num_layers": len(blocks),
        "freq_dim": time[1],
        "latent_channels": patch[1],
        "patch_size": patch[2:],
    }
    return from_dict(DiTConfig, sizes, "dit")


def _num_heads(dim: int, changes: Mapping[str, Any], report: Report) -> Any:
    """What was given, checked by whoever takes it; else 128 channels a head, as in every Wan model."""
    if "dit.num_heads" in changes:
        return changes["dit.num_heads"]
    if dim % 128:
        raise CheckpointError(
            "nothing says how many attention heads the DiT has",
            got=f"width {dim}, which is no multiple of Wan's 128 channels a head",
            fix="say it: --set dit.num_heads=N",
        )
    report("dit.num_heads", f"assumed {dim // 128}, 128 channels a head; set it with --set dit.num_heads=N")
    return dim // 128


def _require_free(changes: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse choices that contradict what a checkpoint was trained with, where its tensors cannot tell."""
    held = {name.split(".")[0] for name in state}
    absent = [part for part in ("source", "latent", "query") if part not in held]
    free = _NEW if held <= {"dit"} else (*FREE, *absent)
    if wrong := [path for path in changes if not any(f"{path}.".startswith(f"{choice}.") for choice in free)]:
        raise SpecError(
            f"{', '.join(wrong)} cannot be set",
            got="a checkpoint that was trained with this choice, or a part with an option of its own",
            wanted=f"one of {', '.join(free)}",
        )


def _dit(state: State, origin: ImportSettings, report: Report) -> tuple[DiTConfig, State, str]:
    """The DiT's sizes, what model.safetensors holds of it, and the fingerprint of a base model that stays outside."""
    adapters = {name: tensor for name, tensor in state.items() if is_adapter(name)}
    weights = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    from_base = not weights
    if from_base:
        if origin.base is None:
            holds = f"{len(adapters)} tensors of adapters and no weights" if adapters else "no DiT"
            raise CheckpointError(
                "the checkpoint needs the base model that it was trained from",
                got=holds,
                fix="give it with --base: a folder or file of Wan weights, or a hub id",
            )
        weights = read_wan_transformer(origin.base.path, origin.base.subfolder)
        require_finite_floats(weights, f"the base model {origin.base.path}")
        report("dit", f"weights of the base model {origin.base.path}")
    config = dit_config(shapes_of(weights), origin.changes, report)
    if not adapters:
        return config, weights, ""
    report("dit", f"{_counted(adapters)}: {origin.adapters}")
    if origin.adapters == "merge":
        return config, merge_adapters(weights, adapters), ""
    merge_adapters(_meta(weights), _meta(adapters))  # only to refuse what does not fit
    rank, targets = rank_and_targets(weights, adapters)
    config = config.replace(tuning=Lora(rank=rank, targets=targets))
    if from_base and origin.base is not None and is_hub_id(origin.base.path) and not Path(origin.base.path).exists():
        return config.replace(base=origin.base), adapters, fingerprint(weights)
    return config, {with_base_layer(name, adapters): tensor for name, tensor in weights.items()} | adapters, ""


def _mllm(state: State, mllm: MllmEncoder, origin: ImportSettings, report: Report) -> tuple[MllmSpec, State, bool]:
    """The MLLM's spec, what model.safetensors holds of it, and whether its own weights were changed."""
    adapters = {name: tensor for name, tensor in state.items() if is_adapter(name)}
    learned = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    weights = {f"model.{name}": tensor for name, tensor in mllm.model.state_dict().items()}
    if unknown := sorted(learned.keys() - weights.keys()):
        raise CheckpointError("the checkpoint's MLLM is not the one given", got=f"unexpected {', '.join(unknown[:5])}")
    weights |= learned
    spec = origin.mllm
    if adapters:
        report("mllm", f"{_counted(adapters)}: {origin.adapters}")
        if origin.adapters == "merge":
            weights = merge_adapters(weights, adapters)
        else:
            merge_adapters(_meta(weights), _meta(adapters))  # only to refuse what does not fit
            # The vision tower never learns, though some of its layers have the language model's names.
            language = {name: weights[name] for name in weights if name.startswith("model.language_model.")}
            rank, targets = rank_and_targets(language, adapters)
            spec = spec.replace(tuning=Lora(rank=rank, targets=targets))
    changed = bool(learned) or (bool(adapters) and origin.adapters == "merge")
    if changed:
        load_strict(
            mllm.model, {name.removeprefix("model."): t for name, t in weights.items()}, "the checkpoint's MLLM"
        )
    return spec, adapters if origin.adapters == "keep" else {}, changed


def _counts(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of queries of each mode that the checkpoint has; of the others, as many as published."""
    tables = {mode: state.get(f"query.queries.{mode}") for mode in ("image", "video", "reference")}
    return {mode: len(table) for mode, table in tables.items() if table is not None}


def _of_one_type(state: Mapping[str, Tensor], dtype: torch.dtype | None, report: Report) -> State:
    """Every part at the type asked for, or the widest of its tensors, float32 at most: modules calculate in one type.

    Adapters are a part of their own: peft brings what enters them to their type.
    """
    parts: dict[tuple[str, bool], list[str]] = {}
    for name in state:
        parts.setdefault((name.split(".")[0], is_adapter(name)), []).append(name)
    alike = dict(state)
    for (part, _), names in parts.items():
        types = {state[name].dtype for name in names}
        widest = reduce(torch.promote_types, types)
        one = dtype or (torch.float32 if widest == torch.float64 else widest)
        if types != {one}:
            told = " and ".join(sorted(map(str, types)))
            report(part, f"{told} in the checkpoint: all as {one}".replace("torch.", ""))
            alike |= {name: state[name].to(one) for name in names}
    return alike


def _filled(config: KiwiConfig, mllm_dim: int, state: Mapping[str, Tensor], seed: int, report: Report) -> State:
    """Initial values of the groups that the checkpoint lacks as a whole, at the type of the rest of their part."""
    filled: State = {}
    for group in FILLED:
        if any(name.startswith(group) for name in state):
            continue
        part = group.split(".")[0]
        with forked_rng(seed, part):
            fresh = config.builders(mllm_dim)[part]().state_dict()
        rest = next((tensor for name, tensor in state.items() if name.startswith(f"{part}.")), None)
        dtype = (next(iter(state.values())) if rest is None else rest).dtype
        values = {f"{part}.{name}": value.to(dtype) for name, value in fresh.items()}
        if found := {name: value for name, value in values.items() if name.startswith(group)}:
            report(group.rstrip("."), "not in the checkpoint: initial values")
        filled |= found
    return filled


def _counted(adapters: State) -> str:
    count = len(adapters) // 2
    return f"{count} adapter{'s' * (count != 1)}"


def _within(state: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _meta(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.to("meta") for name, tensor in state.items()}
