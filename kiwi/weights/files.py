"""Reading and writing weights: safetensors (one file, or shards with an index) and torch files without code.

Tensors of safetensors files are memory-mapped, so a model larger than memory can be renamed and written shard by
shard.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
MAX_SHARD_SIZE = "5GB"
_STATE_DICT_KEYS = ("model_state", "state_dict")
_STEMS = ("model", "diffusion_pytorch_model")


def read_weights(path: Path | str) -> State:
    """The tensors of a file, or of a folder with one set of safetensors weights, by name.

    Args:
        path: a .safetensors file, a .safetensors.index.json, a torch file (read without executing code; a dict under
            `model_state` or `state_dict` is unwrapped), or a folder with model.safetensors or
            diffusion_pytorch_model.safetensors, whole or sharded.

    Raises:
        CheckpointError: there are no weights or two sets of them, an index and its shards disagree, a file is damaged
            or holds more than tensors.
    """
    state: State = {}
    for file in weight_files(path):
        if file.suffix in TORCH_SUFFIXES:
            state |= _read_torch(file)
        else:
            with _reading(file):
                state |= load_file(file)
    return state


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file that belongs to weights, such as config.json.

    Raises:
        CheckpointError: the file cannot be read or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{file} cannot be read", code="unreadable-file", got=problem) from problem
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} cannot be read", code="unreadable-file", got=type(content).__name__, expected="a JSON object"
        )
    return content


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files and folders."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with _reading(path), safe_open(path, framework="pt") as tensors:
        return dict(tensors.metadata() or {})


def lossless_load_dtype(path: Path | str) -> Literal["float32", "bfloat16"]:
    """The dtype to load weights in without losing precision (float32 represents every float16 exactly)."""
    dtypes = {tensor.dtype for tensor in read_weights(path).values()}
    return "bfloat16" if dtypes <= {torch.bfloat16} else "float32"


def weight_files(path: Path | str) -> list[Path]:
    """The files that `read_weights` reads, sorted by name.

    Raises:
        CheckpointError: as `read_weights`, except for damage that only shows when tensors are read.
    """
    path = Path(path)
    if path.is_dir():
        return _files_of_folder(path)
    if not path.is_file():
        raise CheckpointError(
            f"there are no weights at {path}",
            code="missing-weights",
            expected="a .safetensors or .pth file, or a folder",
        )
    if path.name.endswith(".index.json"):
        return _files_of_index(path)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise CheckpointError(
            f"{path} is not a weights file",
            code="unknown-format",
            expected=f".safetensors, {', '.join(TORCH_SUFFIXES)}",
        )
    return [path]


def write_weights(state: Mapping[str, Tensor], folder: Path, stem: str = "model") -> None:
    """Write STEM.safetensors into an existing folder; above 5 GB, shards and STEM.safetensors.index.json."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"format": "pt", "kiwi": __version__}
    pattern = stem + "{suffix}.safetensors"
    save_torch_state_dict(
        contiguous, folder, filename_pattern=pattern, max_shard_size=MAX_SHARD_SIZE, metadata=metadata
    )


def _files_of_folder(folder: Path) -> list[Path]:
    indices = [folder / f"{stem}.safetensors.index.json" for stem in _STEMS]
    single = [folder / f"{stem}.safetensors" for stem in _STEMS]
    present = [file for file in indices + single if file.is_file()]
    if len(present) != 1:
        names = ", ".join(sorted(file.name for file in folder.glob("*.safetensors*"))) or "none"
        raise CheckpointError(
            f"{folder} does not hold one set of weights",
            code="ambiguous-weights" if present else "missing-weights",
            got=", ".join(file.name for file in present) or f"none of the known names (safetensors files: {names})",
            expected=f"one of {', '.join(file.name for file in indices + single)}",
        )
    return weight_files(present[0])


def _files_of_index(index: Path) -> list[Path]:
    try:
        weight_map: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise _unreadable(index, problem) from problem
    # Only names are checked: the shards of a model in the hub's cache are links to files in other folders.
    outside = [name for name in weight_map.values() if not isinstance(name, str) or PureWindowsPath(name).name != name]
    if outside:
        raise CheckpointError(
            f"a shard of {index} leaves the folder",
            code="path-outside-folder",
            got=repr(outside[0]),
            expected="a file in it",
        )
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"shards of {index} are missing", code="missing-shards", got=f"no {', '.join(missing)}", fix="download them"
        )
    _require_agreement(index, weight_map, files)
    return files


def _require_agreement(index: Path, weight_map: Mapping[str, str], files: Sequence[Path]) -> None:
    """Refuse shards whose tensors are not exactly those that the index lists for them."""
    held = [(tensor, file.name) for file in files for tensor in _tensor_names(file)]
    repeated = [tensor for tensor, count in Counter(tensor for tensor, _ in held).items() if count > 1]
    wrong = repeated or sorted({tensor for tensor, _ in set(held) ^ set(weight_map.items())})
    if wrong:
        raise CheckpointError(
            f"{index} and its shards do not agree",
            code="inconsistent-shards",
            got=f"{len(wrong)} tensors {'in two shards' if repeated else 'not in the shards it names'}: "
            + ", ".join(wrong[:5]),
            expected="each tensor once, in the shard that the index names for it",
            fix="download the index and the shards again",
        )


def _tensor_names(file: Path) -> list[str]:
    if file.suffix in TORCH_SUFFIXES:
        return list(_read_torch(file))
    with _reading(file), safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as problem:
        raise _unreadable(file, problem) from problem


def _read_torch(file: Path) -> State:
    try:
        with warnings.catch_warnings(action="ignore"):
            # Files from before torch 1.6 are not archives and cannot be memory-mapped.
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError as problem:
        raise _unreadable(file, problem) from problem
    except Exception as problem:  # the unpickler raises anything on damaged data
        # torch's own message advises running the code in the file, so it is not repeated.
        raise CheckpointError(
            f"the weights {file} cannot be read",
            code="unreadable-weights",
            got="data that is damaged, or that holds more than tensors, such as code, which is never run",
            fix="copy or download it again, or save its state dict alone",
        ) from problem
    return _unwrap(content, file)


def _unwrap(content: Any, file: Path) -> State:
    """The state dict in what a torch file holds."""
    for _ in _STATE_DICT_KEYS:  # not until there is none: a file can hold a dict that contains itself
        keys = [key for key in _STATE_DICT_KEYS if key in content] if isinstance(content, Mapping) else []
        if not keys:
            break
        if len(keys) > 1:
            raise CheckpointError(
                f"{file} holds two sets of weights",
                code="ambiguous-weights",
                got=" and ".join(keys),
                expected="one of them",
            )
        content = content[keys[0]]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(
            f"{file} holds more than named tensors",
            code="not-a-state-dict",
            expected="a state dict, or one under model_state",
        )
    return dict(content)


def _unreadable(file: Path, problem: BaseException) -> CheckpointError:
    # Checked here because safetensors reports a file without read permission as missing.
    if file.exists() and not os.access(file, os.R_OK):
        return CheckpointError(
            f"there is no permission to read the weights {file}",
            code="unreadable-weights",
            fix="change its permissions (chmod +r)",
        )
    first = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    return CheckpointError(
        f"the weights {file} cannot be read",
        code="unreadable-weights",
        got=first,
        fix="copy or download the file again",
    )
