"""Names of tensors in the published formats and in this package, as pure functions on strings.

Ours: `dit.` (the original Wan names), `source.`, `reference.` (patch embeddings), `query.` (tables and connector),
`latent.` (connector), `mllm.model.` (transformers' names). Published, the training checkpoint: `dit.`,
`vae_condition.`, `ref_vae_condition.`, `mllm.` with the spelling `connetor`. Published, the diffusers folder: a
file a part, the transformer under diffusers' names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from kiwi.errors import CheckpointError

T = TypeVar("T")

TEXT_EMBEDDING = "text_embedding."
"""Wan's own text embedding is in the published files, but the context enters cross-attention directly."""

_PUBLISHED = {
    "vae_condition.": "source.",
    "ref_vae_condition.": "reference.",
    "mllm.connetor.": "query.connector.",
    "mllm.ref_connector.": "latent.connector.",
    "mllm.image_queries.q": "query.queries.image",
    "mllm.video_queries.q": "query.queries.video",
    "mllm.ref_queries.q": "query.queries.reference",
    "mllm.model.model.": "mllm.model.",
}
_OURS = {ours: published for published, ours in _PUBLISHED.items()}

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_DIFFUSERS = {
    **{f"blocks.#.self_attn.{ours}.": f"blocks.#.attn1.{theirs}." for ours, theirs in _ATTENTION.items()},
    **{f"blocks.#.cross_attn.{ours}.": f"blocks.#.attn2.{theirs}." for ours, theirs in _ATTENTION.items()},
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
"""Wan's original beginnings of names, and diffusers' in their place; # is a block's number."""


def rename(tensors: Mapping[str, T], new_name: Callable[[str], str], what: str) -> dict[str, T]:
    """The same under other names.

    Args:
        tensors: anything by name.
        new_name: from a name to the other one.
        what: where they come from, for the message.

    Raises:
        CheckpointError: two names of one tensor, of which the last would win.
    """
    before: dict[str, str] = {}
    for name in tensors:
        if (other := before.setdefault(new_name(name), name)) != name:
            raise CheckpointError(f"{what} names a tensor twice", got=f"{other} and {name}", fix="remove one of them")
    return {new: tensors[old] for new, old in before.items()}


def from_published(name: str) -> str:
    """Our name of a tensor of the training checkpoint (its prefix already removed)."""
    return replace_prefix(name, _PUBLISHED)


def to_published(name: str) -> str:
    """The training checkpoint's name of one of our tensors, without `pipe.`."""
    return replace_prefix(name, _OURS)


def strip_checkpoint_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Each name of a training checkpoint, to the name without `pipe.`, `pipe.dit.` or no prefix at all.

    A file whose DiT lost its whole prefix ("blocks.0...") is told by its names; `dit.` is given back to them.
    """
    short = {}
    for name in names:
        rest = name.removeprefix("pipe.")
        known = rest.startswith(("dit.", *(p.split(".")[0] + "." for p in _PUBLISHED)))
        short[name] = rest if known else f"dit.{rest}"
    return short


def dit_to_diffusers(name: str) -> str:
    """diffusers' name of a transformer tensor of Wan's original name (without `dit.`); unknown names stay."""
    return _renamed(name, _DIFFUSERS.items())


def dit_from_diffusers(name: str) -> str:
    """Wan's original name (without `dit.`) of a transformer tensor of diffusers' name; unknown names stay."""
    return _renamed(name, ((theirs, ours) for ours, theirs in _DIFFUSERS.items()))


def is_diffusers_dit(names: Iterable[str]) -> bool:
    """Whether these are a transformer's names in diffusers' spelling."""
    return any(name.startswith("condition_embedder.") for name in names)


def replace_prefix(name: str, table: Mapping[str, str]) -> str:
    """The name with its beginning exchanged by a table; a name with none of its beginnings stays."""
    old = next((old for old in table if name.startswith(old)), None)
    return name if old is None else table[old] + name.removeprefix(old)


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    number = re.match(r"blocks\.(\d+)\.", name)
    general = re.sub(r"^blocks\.\d+\.", "blocks.#.", name)
    for old, new in pairs:
        if general.startswith(old):
            return (new + general.removeprefix(old)).replace("#", number[1] if number else "#")
    return name
