"""Reading and writing weights: safetensors (one file or shards with an index) and torch files without code.

Tensors of safetensors files are mapped into memory, not read: a model larger than memory can be renamed and
written shard by shard.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from kiwi import __version__
from kiwi.errors import CheckpointError
from kiwi.media.files import resolve_inside

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("model_state", "state_dict")
_STEMS = ("model", "diffusion_pytorch_model")
SHARD = "5GB"


def read_weights(path: Path | str) -> State:
    """The tensors of a file, or of a folder with one set of safetensors weights, by name.

    Args:
        path: a .safetensors file, a .safetensors.index.json, a torch file (read without executing what it holds; a
            dict under `model_state` or `state_dict` is unwrapped), or a folder with model.safetensors or
            diffusion_pytorch_model.safetensors, whole or sharded.

    Raises:
        CheckpointError: nothing there, two sets, a file that is damaged, or one that holds more than tensors.
    """
    state: State = {}
    for file in weight_files(path):
        state |= _read_torch(file) if file.suffix in TORCH_SUFFIXES else _read_safetensors(file)
    return state


def read_shapes(path: Path | str) -> Shapes:
    """Names and shapes alone, as `read_weights` would find them; of safetensors only the headers are read."""
    shapes: Shapes = {}
    for file in weight_files(path):
        if file.suffix in TORCH_SUFFIXES:
            shapes |= {name: tuple(tensor.shape) for name, tensor in _read_torch(file).items()}
            continue
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as problem:
            raise _damaged(file, problem) from problem
    return shapes


def saved_dtype(path: Path | str) -> Literal["float32", "bfloat16"]:
    """The type to keep weights in so that nothing is lost of how they were saved."""
    dtypes = {tensor.dtype for tensor in read_weights(path).values()}
    return "bfloat16" if dtypes <= {torch.bfloat16, torch.float16} else "float32"


def weight_files(path: Path | str) -> list[Path]:
    """The files that `read_weights` reads, in the order of their names."""
    path = Path(path)
    if path.is_dir():
        return _files_of_folder(path)
    if not path.is_file():
        raise CheckpointError(f"there are no weights at {path}", wanted="a .safetensors or .pth file, or a folder")
    if path.name.endswith(".index.json"):
        return _files_of_index(path)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise CheckpointError(f"{path} is not a weights file", wanted=f".safetensors, {', '.join(TORCH_SUFFIXES)}")
    return [path]


def write_weights(state: Mapping[str, Tensor], folder: Path, stem: str = "model") -> None:
    """Write STEM.safetensors, or above 5 GB its shards with STEM.safetensors.index.json, into an existing folder."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"format": "pt", "kiwi": __version__}
    pattern = stem + "{suffix}.safetensors"
    save_torch_state_dict(whole, folder, filename_pattern=pattern, max_shard_size=SHARD, metadata=metadata)


def _files_of_folder(folder: Path) -> list[Path]:
    indices = [folder / f"{stem}.safetensors.index.json" for stem in _STEMS]
    single = [folder / f"{stem}.safetensors" for stem in _STEMS]
    found = [file for file in indices + single if file.is_file()]
    if len(found) != 1:
        names = sorted(file.name for file in folder.glob("*.safetensors*")) or "none"
        raise CheckpointError(
            f"{folder} does not hold one set of weights",
            got=", ".join(file.name for file in found) or f"none of the known names (safetensors files: {names})",
            wanted=f"one of {', '.join(file.name for file in indices + single)}",
        )
    return weight_files(found[0])


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise _damaged(index, problem) from problem
    files = [resolve_inside(index.parent, name, f"shard of {index.name}") for name in sorted(names)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"shards of {index} are missing", got=f"no {', '.join(missing)}", fix="download them")
    return files


def _read_safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as problem:
        raise _damaged(file, problem) from problem


def _read_torch(file: Path) -> State:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as problem:
        raise _damaged(file, problem) from problem
    while isinstance(found, Mapping) and (inner := next((w for w in _WRAPPERS if w in found), None)):
        found = found[inner]
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"{file} holds more than named tensors", wanted="a state dict, or one under model_state")
    return dict(found)


def _damaged(file: Path, problem: BaseException) -> CheckpointError:
    first = next(iter(_lines(str(problem))), type(problem).__name__)
    return CheckpointError(f"the weights {file} cannot be read", got=first, fix="copy or download the file again")


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())
