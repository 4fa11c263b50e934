"""Read and write weights: safetensors (one file, or shards with an index) and torch files (without running code).

Tensors of safetensors files are memory-mapped, so a model larger than memory can be converted shard by shard.
"""

import logging
import os
import re
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

from kiwi import __version__, reading
from kiwi.errors import CheckpointError, first_line
from kiwi.weights.names import strip_wrappers

log = logging.getLogger(__name__)

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Supported dtypes of saved weights."""

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
MAX_SHARD_SIZE = "5GB"
_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights")
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng|loops")
"""Keys of a torch file's dict under which there are tensors other than weights."""
_EMA = re.compile(r"[a-z_]*_ema|ema(_[a-z_]*)?|averaged?(_model)?|shadow")
"""First words of names that belong to a moving average of the weights."""


def read_weights(path: Path | str) -> State:
    """Read the named tensors of a file, or of a folder with one set of safetensors weights.

    Prefixes of wrappers such as torch.compile and DDP are removed from the names, which is logged.

    Args:
        path: a .safetensors file, a .safetensors.index.json, a torch file (read without executing code; a dict in
            another, such as `state_dict`, is unwrapped), or a folder with model.safetensors or
            diffusion_pytorch_model.safetensors, in one file or sharded. FILE/NAME chooses one of several sets of
            weights in a file, such as last.ckpt/ema.

    Raises:
        CheckpointError: there are no weights or two sets of them, an index does not match its shards, a file is
            damaged or contains anything but tensors, or a tensor has an integer or quantised dtype.
    """
    state = _read_tensors(path)
    state, removed = strip_wrappers(state, str(path))
    if removed:
        log.info("%s: the prefixes %s were removed from the names of tensors", path, ", ".join(removed))
    state.pop("n_averaged", None)
    require_float_dtypes({name: tensor.dtype for name, tensor in state.items() if tensor.ndim}, str(path))
    return state


def _read_tensors(path: Path | str) -> State:
    path, group = _split_group(Path(path))
    state: State = {}
    for file in list_weight_files(path):
        if file.suffix in TORCH_SUFFIXES:
            tensors, group = _read_torch(file, group)
            state |= tensors
        else:
            with wrap_read_errors(file):
                state |= load_file(file)
    return _select_group(state, path, group)


def _split_group(path: Path) -> tuple[Path, str]:
    """Split FILE/NAME into the file and the name of a set of weights in it; other paths have no such name."""
    file = next((parent for parent in path.parents if parent.is_file()), None)
    return (path, "") if file is None else (file, path.relative_to(file).as_posix())


def _select_group(state: State, path: Path, group: str) -> State:
    """Select the weights, or their moving average, by the first word of the names, if a file has both.

    Raises:
        CheckpointError: it has both and none is chosen, or it does not have the chosen one.
    """
    groups: dict[str, State] = {}
    for name, tensor in state.items():
        word, _, rest = name.partition(".")
        is_average = bool(rest and _EMA.fullmatch(word))
        groups.setdefault(word if is_average else "weights", {})[rest if is_average else name] = tensor
    if not group and len(groups) < 2:
        return next(iter(groups.values()), {})
    return _choose(groups, group, path)


def _matches_group(name: str, group: str) -> bool:
    return name == group or name.startswith(f"{group}/")


def _choose(groups: Mapping[str, State], group: str, path: Path) -> State:
    matches = [state for name, state in groups.items() if group and _matches_group(name, group)]
    if len(matches) == 1:
        return matches[0]
    names = sorted(groups)
    raise CheckpointError(
        f"{path} contains no weights called {group}" if group else f"{path} contains several sets of weights",
        code="missing-weights" if group else "ambiguous-weights",
        got=", ".join(names) or "none",
        fix=f"choose one by its name, such as {path}:{names[0]}" if names else None,
    )


def require_float_dtypes(dtypes: Mapping[str, torch.dtype | str], source: str) -> None:
    """Raise a CheckpointError that lists up to ten tensors unless all have a dtype in FLOAT_DTYPES."""
    names = {str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES} | {"F64", "F32", "F16", "BF16"}
    texts = {name: str(dtype).removeprefix("torch.") for name, dtype in sorted(dtypes.items())}
    if wrong := [f"{name} is {text}" for name, text in texts.items() if text not in names]:
        raise CheckpointError(
            f"{source} contains tensors of an unsupported dtype",
            code="unsupported-dtype",
            got=", ".join(wrong[:10]) + (", ..." if len(wrong) > 10 else ""),
            expected=", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES),
            fix="use a copy that is not quantised",
        )


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file beside weights, such as config.json; otherwise raise a CheckpointError."""
    content = reading.read_json(file, CheckpointError)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object", code="unreadable-file", got=type(content).__name__)
    return content


def read_metadata(path: Path | str) -> dict[str, str]:
    """Read the metadata of a safetensors file; other files and folders have none."""
    path, _ = _split_group(Path(path))
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with wrap_read_errors(path), safe_open(path, framework="pt") as tensors:
        return dict(tensors.metadata() or {})


def choose_lossless_dtype(path: Path | str) -> Literal["float32", "bfloat16"]:
    """Return a dtype in which weights can be loaded without losing precision (float32 represents float16 exactly)."""
    dtypes = {tensor.dtype for tensor in _read_tensors(path).values()}
    return "bfloat16" if dtypes <= {torch.bfloat16} else "float32"


def list_weight_files(path: Path | str) -> list[Path]:
    """List the files that `read_weights` reads, sorted by name.

    Raises:
        CheckpointError: as in `read_weights`, except for damage that is only found by reading tensors.
    """
    path, _ = _split_group(Path(path))
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
        weight_map: dict[str, str] = dict(read_json(index)["weight_map"])
    except (CheckpointError, ValueError, KeyError, TypeError) as error:
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
        return list(_read_torch(file, "")[0])
    with wrap_read_errors(file), safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


@contextmanager
def wrap_read_errors(file: Path) -> Iterator[None]:
    """Raise errors of safetensors and the file system as CheckpointErrors."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unreadable_error(file, error) from error


def _read_torch(file: Path, group: str) -> tuple[State, str]:
    """Read the state dict called `group`, or the only one; the second result is `group` unless it was found."""
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
    return _unwrap_state_dict(content, file, group)


def _unwrap_state_dict(content: Any, file: Path, group: str) -> tuple[State, str]:
    groups = {"": {}} if content == {} else dict(_find_state_dicts(content))
    if not groups:
        expected = "a state dict, or a dict with one under a key such as 'state_dict'"
        raise CheckpointError(f"{file} contains no state dict", code="not-a-state-dict", expected=expected)
    if len(groups) == 1 and not (group and _matches_group(next(iter(groups)), group)):
        return next(iter(groups.values())), group
    return _choose(groups, group, file), ""


def _find_state_dicts(content: Any, name: str = "", depth: int = 3) -> Iterator[tuple[str, State]]:
    """Yield the state dicts in nested dicts, such as ("ema/module", {...}); optimizer states are left out."""
    items = list(content.items()) if isinstance(content, Mapping) else []
    if items and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items):
        # Counters and the best score of a callback are scalars.
        if not name or any(tensor.ndim for _, tensor in items):
            yield name, dict(items)
    elif depth:  # bounded, because a dict can contain itself
        for key, value in items:
            if isinstance(key, str) and not _NOT_WEIGHTS.search(key):
                yield from _find_state_dicts(value, f"{name}/{key}" if name else key, depth - 1)


def _unreadable_error(file: Path, error: BaseException) -> CheckpointError:
    # Checked here, because safetensors reports a file without read permission as missing.
    if file.exists() and not os.access(file, os.R_OK):
        problem = f"permission to read the weights {file} is denied"
        return CheckpointError(problem, code="unreadable-weights", fix="change its permissions (chmod +r)")
    got = first_line(error) or type(error).__name__
    fix = "copy or download the file again"
    return CheckpointError(f"the weights {file} cannot be read", code="unreadable-weights", got=got, fix=fix)
