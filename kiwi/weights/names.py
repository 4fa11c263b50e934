"""Names of tensors in the published formats and in this package, as pure functions on strings.

This package: `dit.` (the original Wan names), `source.`, `reference.` (patch embeddings), `query.` (query tables and
connector), `latent.` (connector), `mllm.model.` (transformers' names). The published training checkpoint: `dit.`,
`vae_condition.`, `ref_vae_condition.`, `mllm.` with the spelling `connetor`. The published diffusers folder: one file
per part, the transformer under diffusers' names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from kiwi.errors import CheckpointError

T = TypeVar("T")

TEXT_EMBEDDING = "text_embedding."
"""Prefix of Wan's text embedding: published files hold it, but the context enters cross-attention directly."""

_FROM_PUBLISHED = {
    "vae_condition.": "source.",
    "ref_vae_condition.": "reference.",
    "mllm.connetor.": "query.connector.",
    "mllm.ref_connector.": "latent.connector.",
    "mllm.image_queries.q": "query.queries.image",
    "mllm.video_queries.q": "query.queries.video",
    "mllm.ref_queries.q": "query.queries.reference",
    "mllm.model.model.": "mllm.model.",
}
_TO_PUBLISHED = {kiwi_name: published for published, kiwi_name in _FROM_PUBLISHED.items()}

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_WAN_TO_DIFFUSERS = {
    **{f"blocks.#.self_attn.{wan}.": f"blocks.#.attn1.{diffusers}." for wan, diffusers in _ATTENTION.items()},
    **{f"blocks.#.cross_attn.{wan}.": f"blocks.#.attn2.{diffusers}." for wan, diffusers in _ATTENTION.items()},
    "blocks.#.ffn.0.": "blocks.#.ffn.net.0.proj.",
    "blocks.#.ffn.2.": "blocks.#.ffn.net.2.",
    "blocks.#.norm3.": "blocks.#.norm2.",
    "blocks.#.modulation": "blocks.#.scale_shift_table",
    "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
    "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
    "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
    "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
    "time_projection.1.": "condition_embedder.time_proj.",
    "patch_embedding.": "patch_embedding.",
    "head.modulation": "scale_shift_table",
    "head.head.": "proj_out.",
}
"""Prefixes of Wan's original names, and diffusers' prefixes in their place; # is the number of a block."""


def rename(tensors: Mapping[str, T], new_name: Callable[[str], str], source: str) -> dict[str, T]:
    """The same tensors (or shapes) under new names.

    Args:
        tensors: by their old names.
        new_name: maps an old name to a new one.
        source: where they come from, for the error message.

    Raises:
        CheckpointError: two old names map to one new name.
    """
    old_names: dict[str, str] = {}
    for name in tensors:
        if (first := old_names.setdefault(new_name(name), name)) != name:
            raise CheckpointError(
                f"{source} names a tensor twice",
                code="duplicate-tensor",
                got=f"{first} and {name}",
                fix="remove one of them",
            )
    return {new: tensors[old] for new, old in old_names.items()}


def from_published(name: str) -> str:
    """This package's name for a tensor of the training checkpoint, whose `pipe.` was removed before."""
    return replace_prefix(name, _FROM_PUBLISHED)


def to_published(name: str) -> str:
    """The training checkpoint's name for a tensor of this package, without `pipe.`."""
    return replace_prefix(name, _TO_PUBLISHED)


def strip_checkpoint_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Map each name of a training checkpoint to the name without `pipe.`.

    Some files dropped the DiT's whole prefix ("blocks.0..."); these names get `dit.` back.
    """
    short = {}
    for name in names:
        rest = name.removeprefix("pipe.")
        has_part = rest.startswith(("dit.", *(p.split(".")[0] + "." for p in _FROM_PUBLISHED)))
        short[name] = rest if has_part else f"dit.{rest}"
    return short


def dit_to_diffusers(name: str) -> str:
    """diffusers' name for a transformer tensor with Wan's original name (without `dit.`); unknown names stay."""
    return _replace_block_prefix(name, _WAN_TO_DIFFUSERS.items())


def dit_from_diffusers(name: str) -> str:
    """Wan's original name (without `dit.`) for a transformer tensor with diffusers' name; unknown names stay."""
    return _replace_block_prefix(name, ((diffusers, wan) for wan, diffusers in _WAN_TO_DIFFUSERS.items()))


def is_diffusers_dit(names: Iterable[str]) -> bool:
    """Whether these are diffusers' names of a Wan transformer."""
    return any(name.startswith("condition_embedder.") for name in names)


def replace_prefix(name: str, table: Mapping[str, str]) -> str:
    """The name with its prefix replaced according to a table; a name without any of the prefixes stays."""
    old = next((old for old in table if name.startswith(old)), None)
    return name if old is None else table[old] + name.removeprefix(old)


def _replace_block_prefix(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    number = re.match(r"blocks\.(\d+)\.", name)
    general = re.sub(r"^blocks\.\d+\.", "blocks.#.", name)
    for old, new in pairs:
        if general.startswith(old):
            return (new + general.removeprefix(old)).replace("#", number[1] if number else "#")
    return name
