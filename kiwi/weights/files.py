"""Reading and writing weights: safetensors (one file or shards with an index) and torch files without code.

Tensors of safetensors files are mapped into memory, not read: a model larger than memory can be renamed and
written shard by shard.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from kiwi import __version__
from kiwi.errors import CheckpointError

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
        CheckpointError: nothing there, two sets, an index and shards that do not agree, a file that is damaged, or one
            that holds more than tensors.
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
        with _opened(file) as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a file that stands beside weights.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{file} cannot be read", got=problem) from problem
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} cannot be read", got=type(found).__name__, wanted="a JSON object")
    return found


def read_metadata(path: Path | str) -> dict[str, str]:
    """The texts that a safetensors file holds beside its tensors; none for other files and folders."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with _opened(path) as opened:
        return dict(opened.metadata() or {})


def saved_dtype(path: Path | str) -> Literal["float32", "bfloat16"]:
    """The type to keep weights in so that nothing is lost of how they were saved (float32 holds every float16)."""
    dtypes = {tensor.dtype for tensor in read_weights(path).values()}
    return "bfloat16" if dtypes <= {torch.bfloat16} else "float32"


def weight_files(path: Path | str) -> list[Path]:
    """The files that `read_weights` reads, in the order of their names.

    Raises:
        CheckpointError: as `read_weights`, but for what only reading the tensors shows.
    """
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
        said: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise _damaged(index, problem) from problem
    # By their names alone: the shards of a model in the hub's cache are links to files elsewhere.
    if wrong := [name for name in said.values() if not isinstance(name, str) or PureWindowsPath(name).name != name]:
        raise CheckpointError(f"a shard of {index} leaves the folder", got=repr(wrong[0]), wanted="a file in it")
    files = [index.parent / name for name in sorted(set(said.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"shards of {index} are missing", got=f"no {', '.join(missing)}", fix="download them")
    held = [(tensor, file.name) for file in files for tensor in _names(file)]
    twice = [tensor for tensor, count in Counter(tensor for tensor, _ in held).items() if count > 1]
    wrong = twice or sorted({tensor for tensor, _ in set(held) ^ set(said.items())})
    if wrong:
        raise CheckpointError(
            f"{index} and its shards do not agree",
            got=f"{len(wrong)} tensors {'in two shards' if twice else 'not in the shards it names'}: "
            + ", ".join(wrong[:5]),
            wanted="each tensor once, in the shard that the index names for it",
            fix="download index and shards again",
        )
    return files


def _names(file: Path) -> list[str]:
    if file.suffix in TORCH_SUFFIXES:
        return list(_read_torch(file))
    with _opened(file) as opened:
        return list(opened.keys())


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (OSError, SafetensorError) as problem:
        raise _damaged(file, problem) from problem


def _read_safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as problem:
        raise _damaged(file, problem) from problem


def _read_torch(file: Path) -> State:
    try:
        with warnings.catch_warnings(action="ignore"):
            # Files of the format before torch 1.6 are no archives and cannot be mapped.
            mapped = zipfile.is_zipfile(file)
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as problem:
        raise _damaged(file, problem) from problem
    except Exception as problem:  # whatever garbage makes the unpickler stumble over
        # Not torch's words: they advise to run the code that a file holds.
        got = "data that is damaged, or that holds more than tensors, such as code, which is never run"
        raise CheckpointError(
            f"the weights {file} cannot be read", got=got, fix="copy or download it again, or save its state dict alone"
        ) from problem
    for _ in _WRAPPERS:  # not until there is none: a file can hold a dict that holds itself
        inner = [name for name in _WRAPPERS if name in found] if isinstance(found, Mapping) else []
        if not inner:
            break
        if len(inner) > 1:
            raise CheckpointError(f"{file} holds two sets of weights", got=" and ".join(inner), wanted="one of them")
        found = found[inner[0]]
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise CheckpointError(f"{file} holds more than named tensors", wanted="a state dict, or one under model_state")
    return dict(found)


def _damaged(file: Path, problem: BaseException) -> CheckpointError:
    # Asked here: safetensors says of a file that may not be read that there is none.
    if file.exists() and not os.access(file, os.R_OK):
        return CheckpointError(f"the weights {file} may not be read", fix="change its permissions (chmod +r)")
    first = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    return CheckpointError(f"the weights {file} cannot be read", got=first, fix="copy or download the file again")
