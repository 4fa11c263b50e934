"""Implementation of `kiwi convert`: check the options, then call the reader or the writer of the format."""

from dataclasses import fields, replace
from pathlib import Path

import torch

from kiwi.checkpoints import ConvertOptions
from kiwi.checkpoints.assemble import ImportSettings, Report, assemble
from kiwi.checkpoints.diffusers_folder import export_diffusers, import_diffusers
from kiwi.checkpoints.folder_config import is_model_folder, list_pretrained_paths, list_unexpected_files
from kiwi.checkpoints.published import export_lora, export_published, import_published
from kiwi.errors import InputError
from kiwi.media.files import require_no_overlap, require_replaceable, require_writable
from kiwi.models.dit.base import WanBase, read_wan_transformer
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.vae.wan import WanVae
from kiwi.options import parse_assignments
from kiwi.weights.files import choose_lossless_dtype
from kiwi.weights.hub import locate

LORA_FORMATS = ("lora-comfyui", "lora-diffusers")
_IMPORT_OPTIONS = {
    "wan": {"dtype", "vae", "mllm", "by_name", "set", "seed"},
    "kiwi-upstream": {"dtype", "vae", "mllm", "by_name", "set", "seed", "base", "adapters"},
    "kiwi-diffusers": {"dtype", "set", "seed"},
}
_IMPORT_OPTIONS |= dict.fromkeys(LORA_FORMATS, _IMPORT_OPTIONS["kiwi-upstream"])
"""Options that have an effect when reading each format."""


def convert(options: ConvertOptions) -> list[tuple[str, str]]:
    """Implement `kiwi.checkpoints.convert`."""
    exporting = is_model_folder(options.src)
    _check_options(options, exporting)
    _check_target(options, exporting)
    steps: list[tuple[str, str]] = []

    def report(part: str, outcome: str) -> None:
        steps.append((part, outcome))

    dtype = None if options.dtype == "keep" else getattr(torch, options.dtype)
    if exporting:
        if options.format in LORA_FORMATS:
            export_lora(Path(options.src), options.dst, options.format, report, dtype)
        else:
            export = export_diffusers if options.format == "kiwi-diffusers" else export_published
            export(Path(options.src), options.dst, report, dtype)
    elif options.format == "kiwi-diffusers":
        changes = parse_assignments(options.set)
        import_diffusers(options.src, changes, options.dst, report, dtype=dtype, seed=options.seed)
    elif options.format == "kiwi-upstream" or options.format in LORA_FORMATS:
        import_published(
            Path(*_split_subfolder(options.src)), _make_import_settings(options, dtype), options.dst, report
        )
    else:
        _import_wan(options, _make_import_settings(options, dtype), report)
    return steps


def _import_wan(options: ConvertOptions, settings: ImportSettings, report: Report) -> None:
    """Convert a Wan transformer to an editor that can be trained; the parts that Wan lacks are initialised.

    The source and reference embeddings are initialised to zero, so that training starts from the base model.
    """
    tensors = read_wan_transformer(*_split_subfolder(options.src))
    default_changes = {"query.readout": "queries", "reference": "AppendReference"}
    settings = replace(settings, changes={**default_changes, **settings.changes})
    assemble({f"dit.{name}": tensor for name, tensor in tensors.items()}, settings, options.dst, report)


def _make_import_settings(options: ConvertOptions, dtype: torch.dtype | None) -> ImportSettings:
    if not options.vae or not options.mllm:
        raise InputError(
            f"the format {options.format} contains neither a VAE nor an MLLM",
            code="missing-option",
            got=f"--vae {options.vae or 'not given'}, --mllm {options.mllm or 'not given'}",
            fix="pass both, such as --vae Wan-AI/Wan2.2-TI2V-5B-Diffusers:vae --mllm Qwen/Qwen2.5-VL-3B-Instruct",
        )
    (vae, subfolder), (base, base_subfolder) = _split_subfolder(options.vae), _split_subfolder(options.base or "")
    mllm = locate(options.mllm, "MLLM", "pass a folder with a Qwen-VL, or a hub id")
    return ImportSettings(
        vae=WanVae(path=vae, subfolder=subfolder),
        mllm=QwenVL(path=options.mllm, dtype=choose_lossless_dtype(mllm)),
        base=WanBase(path=base, subfolder=base_subfolder) if base else None,
        changes=parse_assignments(options.set),
        adapters=options.adapters,
        self_contained=not options.by_name,
        dtype=dtype,
        seed=options.seed,
    )


def _check_options(options: ConvertOptions, exporting: bool) -> None:
    """Raise if an option would have no effect."""
    if exporting and options.format == "wan":
        raise InputError(
            "a model folder cannot be written as Wan base weights",
            code="unsupported-conversion",
            fix="use kiwi-upstream or kiwi-diffusers: the transformer of an editor cannot be used without its MLLM",
        )
    set_options = {field.name for field in fields(options) if getattr(options, field.name) != field.default}
    used_options = {"dtype"} if exporting else _IMPORT_OPTIONS[options.format]
    if unused := sorted(set_options - used_options - {"format", "src", "dst", "force"}):
        raise InputError(
            f"{'writing' if exporting else 'reading'} {options.format} does not use {_format_flags(unused)}",
            code="unused-option",
            expected=f"only options among {_format_flags(sorted(used_options))}",
        )


def _check_target(options: ConvertOptions, exporting: bool) -> None:
    """Raise early if the target cannot be written, or if writing it would delete other files or an input."""
    if exporting and options.format != "kiwi-diffusers":  # the target is a file
        require_writable(options.dst)
    else:
        require_replaceable(options.dst, list_unexpected_files)
    for source in filter(None, (options.src, options.vae, options.mllm, options.base)):
        require_no_overlap(options.dst, Path(*_split_subfolder(source)))
    for path in list_pretrained_paths(options.src) if exporting else []:
        require_no_overlap(options.dst, path)
    if options.dst.exists() and not options.force:
        raise InputError(f"{options.dst} exists", code="existing-output", fix="choose another path, or pass --force")


def _split_subfolder(path: str) -> tuple[str, str]:
    """Split PATH:SUBFOLDER at the colon, unless the whole string is an existing path."""
    folder, _, subfolder = (path, "", "") if Path(path).exists() else path.partition(":")
    return folder, subfolder


def _format_flags(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
