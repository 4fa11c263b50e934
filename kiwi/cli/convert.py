"""`kiwi convert FORMAT SRC DST`: between model folders and the published formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi import console
from kiwi.cli import changes, parser
from kiwi.errors import InputError

if TYPE_CHECKING:
    from kiwi.checkpoints.assemble import ImportSettings

_MEANT = {
    "wan": {"dtype", "vae", "mllm", "by_name", "set", "seed"},
    "kiwi-upstream": {"dtype", "vae", "mllm", "by_name", "set", "seed", "base", "adapters"},
    "kiwi-diffusers": {"dtype", "set", "seed"},
}
"""The options that mean something for reading a format."""

FORMATS = tuple(_MEANT)

_WHAT = """Convert a model. FORMAT is the published side; the other side is a model folder of this package.

  wan             the transformer of a Wan model, original or diffusers names (only into a model folder)
  kiwi-upstream   the published training checkpoint, one .safetensors file
  kiwi-diffusers  the published diffusers folder

When SRC is a model folder it is written as FORMAT to DST, if its choices are among those that the published code
has; otherwise SRC is read as FORMAT and DST becomes a model folder. Every tensor must be accounted for: those that are
missing, unexpected or of another shape are listed and nothing is written. Parts that an earlier training stage did not
have get their initial values; the report says so."""


def main(argv: list[str]) -> int:
    """Convert, then say part by part what was done."""
    options = parser(argv[0], _WHAT)
    options.add_argument("format", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    options.add_argument(
        "src",
        metavar="SRC",
        help="what is read: a model folder; for wan a file, a folder or a hub id, PATH:SUBFOLDER too; for "
        "kiwi-upstream a file; for kiwi-diffusers a folder or a hub id",
    )
    options.add_argument("dst", metavar="DST", type=Path, help="what is written; its parent folder must exist")
    given = options.add_argument_group("what wan and kiwi-upstream do not hold")
    given.add_argument(
        "--vae", help="VAE: Wan's .pth file, a diffusers folder, or a hub id; PATH:SUBFOLDER names a part of it"
    )
    given.add_argument("--mllm", help="Qwen-VL folder or hub id, without adapters")
    given.add_argument(
        "--base", help="Wan base model (PATH or PATH:SUBFOLDER), for checkpoints that hold no DiT or adapters of one"
    )
    given.add_argument("--adapters", choices=("merge", "keep"), default="merge", help="what becomes of LoRA adapters")
    given.add_argument("--by-name", action="store_true", help="name VAE and MLLM by path instead of copying them")
    given.add_argument("--seed", type=int, default=0, help="of the initial values of what is absent")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="a choice that the published side does not say, such as reference=PrependReference, dit.num_heads=24 or "
        "mllm.limits.max_frames=10; may be repeated",
    )
    options.add_argument(
        "--dtype",
        choices=("keep", "float32", "bfloat16"),
        default="keep",
        help="type of the weights written; VAE and MLLM keep theirs",
    )
    options.add_argument(
        "--force", action="store_true", help="replace DST, if it is what this command writes and holds nothing else"
    )
    arguments = options.parse_args(argv[1:])

    from kiwi.checkpoints.folder import is_model_folder

    exporting = is_model_folder(arguments.src)
    said = {name for name, value in vars(arguments).items() if value != options.get_default(name)}
    _require_meant(said, arguments.format, exporting)
    _require_target(arguments, exporting)
    rows: list[tuple[str, str]] = []
    run = _export if exporting else _import
    run(arguments, lambda part, text: rows.append((part, text)))
    console.table("", ("part", "what became of it"), rows)
    console.print(f"{arguments.dst} written")
    return 0


def _require_meant(said: set[str], format: str, exporting: bool) -> None:
    """Refuse options that would be passed over."""
    if exporting and format == "wan":
        raise InputError(
            "a model folder cannot be written as Wan base weights",
            fix="an editor's transformer is told by an MLLM, not by Wan's text encoder: alone it generates nothing",
        )
    meant = {"dtype"} if exporting else _MEANT[format]
    if lost := sorted(said - meant - {"format", "src", "dst", "force"}):
        raise InputError(
            f"{'writing' if exporting else 'reading'} {format} does nothing with "
            + ", ".join(f"--{name.replace('_', '-')}" for name in lost),
            wanted="of these options none but " + ", ".join(f"--{name.replace('_', '-')}" for name in sorted(meant)),
            fix="leave it out",
        )


def _require_target(arguments: Any, exporting: bool) -> None:
    """Refuse, before the work, a DST that cannot be written or where something would be lost."""
    from kiwi.checkpoints.folder import pretrained_paths, unexpected_files
    from kiwi.media.files import require_no_overlap, require_replaceable, require_writable

    if exporting and arguments.format == "kiwi-upstream":  # a file; the rest is told when it is opened, before the work
        require_writable(arguments.dst)
    else:
        require_replaceable(arguments.dst, unexpected_files)
    for source in (arguments.src, arguments.vae, arguments.mllm, arguments.base):
        if source:
            require_no_overlap(arguments.dst, Path(*_split(source)))
    for path in pretrained_paths(arguments.src) if exporting else []:
        require_no_overlap(arguments.dst, path)
    if arguments.dst.exists() and not arguments.force:
        raise InputError(f"{arguments.dst} exists", fix="give another name, or --force to replace it")


def _import(arguments: Any, report: Any) -> None:
    from kiwi.checkpoints.diffusers_folder import import_diffusers
    from kiwi.checkpoints.published import import_published
    from kiwi.checkpoints.wan import import_wan

    match arguments.format:
        case "kiwi-diffusers":
            choices, dtype = changes(arguments.set), _dtype(arguments)
            import_diffusers(arguments.src, choices, arguments.dst, report, dtype=dtype, seed=arguments.seed)
        case "kiwi-upstream":
            import_published(Path(arguments.src), _origin(arguments), arguments.dst, report)
        case _:
            source, subfolder = _split(arguments.src)
            import_wan(source, _origin(arguments), arguments.dst, report, subfolder=subfolder)


def _export(arguments: Any, report: Any) -> None:
    from kiwi.checkpoints.diffusers_folder import export_diffusers
    from kiwi.checkpoints.published import export_published

    export = export_diffusers if arguments.format == "kiwi-diffusers" else export_published
    export(Path(arguments.src), arguments.dst, report, _dtype(arguments))


def _dtype(arguments: Any) -> Any:
    """The torch type that was asked for; None to keep each weight's own."""
    import torch

    return None if arguments.dtype == "keep" else getattr(torch, arguments.dtype)


def _origin(arguments: Any) -> ImportSettings:
    from kiwi.checkpoints.assemble import ImportSettings
    from kiwi.models.dit.base import WanBase
    from kiwi.models.mllm.encoder import QwenVL
    from kiwi.models.vae.wan import WanVae
    from kiwi.weights.files import saved_dtype
    from kiwi.weights.hub import locate

    if not arguments.vae or not arguments.mllm:
        raise InputError(
            f"{arguments.format} holds no VAE and no MLLM",
            got=f"--vae {arguments.vae or 'not given'}, --mllm {arguments.mllm or 'not given'}",
            fix="name both, such as --vae Wan-AI/Wan2.2-TI2V-5B-Diffusers:vae --mllm Qwen/Qwen2.5-VL-3B-Instruct",
        )
    (vae, subfolder), (base, base_subfolder) = _split(arguments.vae), _split(arguments.base or "")
    mllm = locate(arguments.mllm, "MLLM", "name a folder with a Qwen-VL, or a hub id")
    return ImportSettings(
        vae=WanVae(path=vae, subfolder=subfolder),
        mllm=QwenVL(path=arguments.mllm, dtype=saved_dtype(mllm)),
        base=WanBase(path=base, subfolder=base_subfolder) if base else None,
        changes=changes(arguments.set),
        adapters=arguments.adapters,
        self_contained=not arguments.by_name,
        dtype=_dtype(arguments),
        seed=arguments.seed,
    )


def _split(path: str) -> tuple[str, str]:
    """PATH:SUBFOLDER in its two parts; what exists as it stands is a path."""
    whole, _, subfolder = (path, "", "") if Path(path).exists() else path.partition(":")
    return whole, subfolder
