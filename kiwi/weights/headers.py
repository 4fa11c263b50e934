"""Headers of safetensors weights: names, shapes and dtypes without values; plausible sizes of a configuration."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from kiwi.errors import CheckpointError
from kiwi.weights.files import list_weight_files, wrap_read_errors


def read_headers(path: Path | str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the shape and the dtype, such as "BF16", of each tensor in safetensors weights, without reading values."""
    headers: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in list_weight_files(path):
        if file.suffix == ".safetensors":
            with wrap_read_errors(file), safe_open(file, framework="pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  (not a dict)
                headers |= {name: (tuple(entry.get_shape()), entry.get_dtype()) for name, entry in slices.items()}
    return headers


def require_plausible_sizes(config: Mapping[str, Any], path: Path | str, *others: Path) -> None:
    """Check the sizes in a config.json against the headers of its weights, before a model is built.

    Weights are at `path`, the folder of config.json, and at `others`.

    A width, a number of layers or a rank is larger than all dimensions of all tensors, and than their number, only if
    the file is not that of these weights; building the model could then take all memory or never end.

    Raises:
        CheckpointError: a size is too large; see also `list_weight_files`.
    """
    headers = {(file, name): header for file in (path, *others) for name, header in read_headers(file).items()}
    largest = max((len(headers), *(size for shape, _ in headers.values() for size in shape)), default=0)
    if headers and (wrong := next(_find_larger_sizes(config, largest), None)):
        raise CheckpointError(
            f"the sizes in the config.json of {path} do not match its weights",
            code="mismatched-config",
            got=wrong,
            expected=f"at most {largest}, the largest dimension of {len(headers)} tensors",
            fix="restore the config.json that was saved with the weights",
        )


_SIZE = re.compile(r"(.*_)?(dim|mult|layers|depth|rank|blocks|size|channels|heads|width)|image|video|reference")


def _find_larger_sizes(config: Any, largest: int) -> Iterator[str]:
    """Yield "FIELD = VALUE" for each size in a nested configuration that is larger."""
    nodes = [("", config)]  # not recursive, because a file can be nested deeper than Python's stack
    while nodes:
        name, node = nodes.pop()
        if isinstance(node, (list, tuple)):
            nodes += [(name, entry) for entry in node]
        elif isinstance(node, Mapping):
            nodes += [(str(key), value) for key, value in node.items()]
        elif type(node) is int and node > largest and _SIZE.fullmatch(name):
            yield f"{name} = {node}"
