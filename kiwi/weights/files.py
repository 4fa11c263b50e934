"""Read and write weights: safetensors (one file, or shards with an index) and torch files (without running code).

Tensors of safetensors files are memory-mapped, so a model larger than memory can be converted shard by shard.
"""

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
from kiwi.errors import CheckpointError, first_line

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
MAX_SHARD_SIZE = "5GB"
_STATE_DICT_KEYS = ("model_state", "state_dict")
_STEMS = ("model", "diffusion_pytorch_model")


def read_weights(path: Path | str) -> State:
    """Read the named tensors of a file, or of a folder with one set of safetensors weights.

    Args:
        path: a .safetensors file, a .safetensors.index.json, a torch file (read without executing code; a dict under
            `model_state` or `state_dict` is unwrapped), or a folder with model.safetensors or
            diffusion_pytorch_model.safetensors, in one file or sharded.

    Raises:
        CheckpointError: there are no weights or two sets of them, an index does not match its shards, or a file is
            damaged or contains anything but tensors.
    """
    state: State = {}
    for file in list_weight_files(path):
        if file.suffix in TORCH_SUFFIXES:
            state |= _read_torch(file)
        else:
            with _wrap_read_errors(file):
                state |= load_file(file)
    return state


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file beside weights, such as config.json; otherwise raise a CheckpointError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read", code="unreadable-file", got=error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object", code="unreadable-file", got=type(content).__name__)
    return content


def read_metadata(path: Path | str) -> dict[str, str]:
    """Read the metadata of a safetensors file; other files and folders have none."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with _wrap_read_errors(path), safe_open(path, framework="pt") as tensors:
        return dict(tensors.metadata() or {})


def choose_lossless_dtype(path: Path | str) -> Literal["float32", "bfloat16"]:
    """Return a dtype in which weights can be loaded without losing precision (float32 represents float16 exactly)."""
    dtypes = {tensor.dtype for tensor in read_weights(path).values()}
    return "bfloat16" if dtypes <= {torch.bfloat16} else "float32"


def list_weight_files(path: Path | str) -> list[Path]:
    """List the files that `read_weights` reads, sorted by name.

    Raises:
        CheckpointError: as in `read_weights`, except for damage that is only found by reading tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _list_folder_files(path)
    if not path.is_file():
        expected = "a .safetensors or .pth file, or a folder"
        raise CheckpointError(f"there are no weights at {path}", code="missing-weights", expected=expected)
    if path.name.endswith(".index.json"):
        return _list_index_files(path)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise CheckpointError(
            f"{path} is not a weights file", code="wrong-suffix", expected=f".safetensors, {', '.join(TORCH_SUFFIXES)}"
        )
    return [path]


def write_weights(state: Mapping[str, Tensor], folder: Path, stem: str = "model") -> None:
    """Write STEM.safetensors into an existing folder, or shards and STEM.safetensors.index.json above 5 GB."""
    save_torch_state_dict(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        folder,
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=MAX_SHARD_SIZE,
        metadata={"format": "pt", "kiwi": __version__},
    )


def _list_folder_files(folder: Path) -> list[Path]:
    names = [f"{stem}.safetensors{suffix}" for stem in _STEMS for suffix in (".index.json", "")]
    present = [name for name in names if (folder / name).is_file()]
    if len(present) != 1:
        others = sorted(file.name for file in folder.glob("*.safetensors*"))
        raise CheckpointError(
            f"{folder} must contain exactly one set of weights",
            code="ambiguous-weights" if present else "missing-weights",
            got=", ".join(present or others) or "no .safetensors files",
            expected=f"one of {', '.join(names)}",
        )
    return list_weight_files(folder / present[0])


def _list_index_files(index: Path) -> list[Path]:
    try:
        weight_map: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable_error(index, error) from error
    # Only names are checked, because shards in the hub's cache are symbolic links to files in other folders.
    for name in weight_map.values():
        if not isinstance(name, str) or PureWindowsPath(name).name != name:
            problem = f"the index {index} references a file outside its folder"
            raise CheckpointError(problem, code="path-outside-folder", got=repr(name))
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"shards of {index} are missing: {', '.join(missing)}", code="missing-weights", fix="download them"
        )
    _check_index_matches_shards(index, weight_map, files)
    return files


def _check_index_matches_shards(index: Path, weight_map: Mapping[str, str], files: Sequence[Path]) -> None:
    """Raise unless each shard contains exactly the tensors that the index lists for it."""
    stored_names = [(name, file.name) for file in files for name in _read_tensor_names(file)]
    duplicates = [name for name, count in Counter(name for name, _ in stored_names).items() if count > 1]
    mismatches = duplicates or sorted({name for name, _ in set(stored_names) ^ set(weight_map.items())})
    if mismatches:
        raise CheckpointError(
            f"the index {index} does not match its shards",
            code="mismatched-shards",
            got=f"{len(mismatches)} tensors {'in two shards' if duplicates else 'not in the shard listed for them'}: "
            + ", ".join(mismatches[:5]),
            expected="each tensor once, in the shard that the index lists for it",
            fix="download the index and the shards again",
        )


def _read_tensor_names(file: Path) -> list[str]:
    if file.suffix in TORCH_SUFFIXES:
        return list(_read_torch(file))
    with _wrap_read_errors(file), safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


@contextmanager
def _wrap_read_errors(file: Path) -> Iterator[None]:
    """Raise errors of safetensors and the file system as CheckpointErrors."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unreadable_error(file, error) from error


def _read_torch(file: Path) -> State:
    try:
        with warnings.catch_warnings(action="ignore"):
            # Files from PyTorch before 1.6 are not zip archives and cannot be memory-mapped.
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError as error:
        raise _unreadable_error(file, error) from error
    except Exception as error:  # the unpickler can raise any exception on damaged data
        # PyTorch's message advises loading with weights_only=False, which runs code, so it is not shown.
        raise CheckpointError(
            f"the weights {file} cannot be read",
            code="unreadable-weights",
            got="damaged data, or objects other than tensors (such as code, which kiwi never runs)",
            fix="copy or download it again, or save only its state dict",
        ) from error
    return _unwrap_state_dict(content, file)


def _unwrap_state_dict(content: Any, file: Path) -> State:
    """Unwrap the state dict of a torch file's content."""
    for _ in _STATE_DICT_KEYS:  # a while loop would not end on a dict that contains itself
        keys = [key for key in _STATE_DICT_KEYS if key in content] if isinstance(content, Mapping) else []
        if not keys:
            break
        if len(keys) > 1:
            raise CheckpointError(
                f"{file} contains two sets of weights", code="ambiguous-weights", got=f"the keys {' and '.join(keys)}"
            )
        content = content[keys[0]]
    items = content.items() if isinstance(content, Mapping) else [(None, content)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in items):
        expected = "a state dict, or a dict with one under 'model_state' or 'state_dict'"
        raise CheckpointError(f"{file} contains no state dict", code="not-a-state-dict", expected=expected)
    return dict(items)


def _unreadable_error(file: Path, error: BaseException) -> CheckpointError:
    # Checked here, because safetensors reports a file without read permission as missing.
    if file.exists() and not os.access(file, os.R_OK):
        problem = f"permission to read the weights {file} is denied"
        return CheckpointError(problem, code="unreadable-weights", fix="change its permissions (chmod +r)")
    got = first_line(error) or type(error).__name__
    fix = "copy or download the file again"
    return CheckpointError(f"the weights {file} cannot be read", code="unreadable-weights", got=got, fix=fix)
