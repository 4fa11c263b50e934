"""Conversion of tensor names between kiwi and the published formats, as pure functions on strings.

kiwi: `dit.` (the original Wan names), `source.`, `reference.` (patch embeddings), `query.` (query tables and
connector), `latent.` (connector), `mllm.model.` (transformers' names). The published training checkpoint: `dit.`,
`vae_condition.`, `ref_vae_condition.`, `mllm.` with the spelling `connetor`. The published diffusers folder: one file
per part, the transformer under diffusers' names.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from kiwi.errors import CheckpointError

T = TypeVar("T")

TEXT_EMBEDDING = "text_embedding."
"""Prefix of Wan's text embedding: published files contain it, but cross-attention attends to the context directly."""

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
"""Prefix in Wan's original names -> prefix in diffusers' names; # stands for the block number."""


def rename(tensors: Mapping[str, T], convert_name: Callable[[str], str], source: str) -> dict[str, T]:
    """Rename tensors (or shapes); the error message calls their origin `source`.

    Raises:
        CheckpointError: two tensors would get the same name.
    """
    old_names: dict[str, str] = {}
    for name in tensors:
        if (first := old_names.setdefault(convert_name(name), name)) != name:
            raise CheckpointError(
                f"{source} contains the same tensor under two names", code="duplicate-tensor", got=f"{first} and {name}"
            )
    return {new: tensors[old] for new, old in old_names.items()}


_WRAPPER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
"""Modules that torch.compile, FSDP, activation checkpointing and Fabric put around others, anywhere in a name."""

_OUTER = ("module", "model", "diffusion_model", "transformer", "net")
"""Names under which DDP, Lightning modules and other programs hold the whole model."""


def strip_wrappers(tensors: Mapping[str, T], source: str) -> tuple[dict[str, T], list[str]]:
    """Remove the prefixes that compilers, DDP, FSDP and other wrappers put into names, and the counter of an average.

    Wrappers' own names are removed anywhere; `module.`, `model.` and the like only if all names begin with them.

    Returns:
        The tensors, and the removed prefixes.

    Raises:
        CheckpointError: two tensors would get the same name.
    """
    removed = {match: None for name in tensors for match in _WRAPPER.findall(name)}
    stripped = rename(tensors, lambda name: _WRAPPER.sub("", name), source)
    names = set(stripped) - {"n_averaged"}  # of torch.optim.swa_utils.AveragedModel, whose weights are in `module.`
    while (
        names and (outer := next(iter(names)).split(".")[0]) in _OUTER and all(n.startswith(f"{outer}.") for n in names)
    ):
        removed[outer] = None
        stripped = {name.removeprefix(f"{outer}."): stripped[name] for name in stripped if name in names}
        names = set(stripped)
    return stripped, [f"{name}." for name in removed]


def select_prefix(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Select the tensors (or shapes) whose names start with a prefix, by name without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def from_published(name: str) -> str:
    """Convert a name of the training checkpoint, without `pipe.`, to kiwi's name."""
    return replace_prefix(name, _FROM_PUBLISHED)


def to_published(name: str) -> str:
    """Convert kiwi's name to the name in the training checkpoint, without `pipe.`."""
    return replace_prefix(name, _TO_PUBLISHED)


def strip_checkpoint_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Map each name of a training checkpoint to the name without `pipe.`.

    Some files also lack the DiT's prefix ("blocks.0..."); these names get `dit.` back.
    """
    unprefixed = {}
    for name in names:
        short_name = name.removeprefix("pipe.")
        has_part = short_name.startswith(("dit.", *(prefix.split(".")[0] + "." for prefix in _FROM_PUBLISHED)))
        unprefixed[name] = short_name if has_part else f"dit.{short_name}"
    return unprefixed


def dit_to_diffusers(name: str) -> str:
    """Convert a DiT tensor name (without `dit.`) from Wan's to diffusers'; unknown names are returned unchanged."""
    return _replace_block_prefix(name, _WAN_TO_DIFFUSERS.items())


def dit_from_diffusers(name: str) -> str:
    """Convert a DiT tensor name (without `dit.`) from diffusers' to Wan's; unknown names are returned unchanged."""
    return _replace_block_prefix(name, ((diffusers, wan) for wan, diffusers in _WAN_TO_DIFFUSERS.items()))


def is_diffusers_dit(names: Iterable[str]) -> bool:
    """Whether tensor names are those of a Wan transformer in diffusers."""
    return any(name.startswith("condition_embedder.") for name in names)


def replace_prefix(name: str, table: Mapping[str, str]) -> str:
    """Replace a name's prefix according to a table; a name without any of the prefixes is returned unchanged."""
    old = next((old for old in table if name.startswith(old)), None)
    return name if old is None else table[old] + name.removeprefix(old)


def _replace_block_prefix(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    block = re.match(r"blocks\.(\d+)\.", name)
    pattern = re.sub(r"^blocks\.\d+\.", "blocks.#.", name)
    for old, new in pairs:
        if pattern.startswith(old):
            return (new + pattern.removeprefix(old)).replace("#", block[1] if block else "#")
    return name
