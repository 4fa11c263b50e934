"""Two ways to run the MLLM's language model over a prompt, equal in states and in the queries' gradients.

B samples, S tokens, M the MLLM's width. In the second way: P tokens of the longest prefix, T of the suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from kiwi.models.mllm.prompting import Prompt


class LanguageModelInput(NamedTuple):
    """A prompt as the language model gets it."""

    prompt: Prompt
    embeds_BSM: Tensor
    """Words, visual features and queries in their places."""
    positions_3BS: Tensor
    deep_DVM: Tensor
    """What is added at the V visual tokens after each of the first D layers; D is 0 in Qwen2.5-VL."""


LanguageModelForward = Callable[[nn.Module, LanguageModelInput, Sequence[int]], dict[int, Tensor]]
"""From the language model, its input and the layers asked for to hidden states (B, S, M) by layer."""


def full_forward(language_model: nn.Module, given: LanguageModelInput, layers: Sequence[int]) -> dict[int, Tensor]:
    """All tokens in one pass: what weights that learn need."""
    prompt = given.prompt
    return _run(
        language_model,
        given.embeds_BSM,
        prompt.attention_mask_BS,
        given.positions_3BS,
        layers,
        **_deepstack(given.deep_DVM, prompt.token_types_BS > 0),
    )


def prefix_cached_forward(
    language_model: nn.Module, given: LanguageModelInput, layers: Sequence[int]
) -> dict[int, Tensor]:
    """What stands before the queries without gradients, into a cache of keys and values; then queries and what follows.

    Exact while no weight of the language model learns: attention is causal, so that nothing before the queries depends
    on them. Only the suffix is kept for the backward pass.
    """
    prompt, embeds_BSM = given.prompt, given.embeds_BSM
    suffix_BS = _suffix(prompt)
    batch, before = len(suffix_BS), suffix_BS.shape[1] - int(suffix_BS[0].sum())
    # In a shorter row these columns reach into the suffix, which is masked there: the padding of its prefix.
    prefix_BP = (prompt.attention_mask_BS.bool() & ~suffix_BS)[:, :before]
    cache = DynamicCache()
    with torch.no_grad():
        prefix = _run(
            language_model,
            embeds_BSM[:, :before],
            prefix_BP,
            given.positions_3BS[:, :, :before],
            layers,
            cache,
            **_deepstack(given.deep_DVM, prompt.token_types_BS[:, :before] > 0),
        )
    suffix_BT = suffix_BS[suffix_BS].view(batch, -1)
    real_BS = torch.cat((prefix_BP, suffix_BT), dim=1)
    positions_3BT = given.positions_3BS[:, suffix_BS].unflatten(1, suffix_BT.shape)
    embeds_BTM = embeds_BSM[suffix_BS].unflatten(0, suffix_BT.shape)
    suffix = _run(language_model, embeds_BTM, real_BS, positions_3BT, layers, cache)
    # Back to the prompt's order, padding behind the suffix instead of before it.
    order_BS = real_BS.int().argsort(dim=1, descending=True, stable=True)
    return {
        layer: torch.cat((prefix[layer], suffix[layer]), dim=1).take_along_dim(order_BS[..., None], dim=1)
        for layer in prefix
    }


def _suffix(prompt: Prompt) -> Tensor:
    """True from the first query to the end of a sample, which is equally far in all (B, S)."""
    counts_B = ((prompt.queries_BS.cumsum(dim=1) > 0) & prompt.attention_mask_BS.bool()).sum(dim=1)
    assert len(counts_B.unique()) == 1, "a batch has one template and one number of queries"
    # Without queries the last token is run by itself, so that there is a suffix.
    return prompt.tail_BS(max(1, int(counts_B[0])))


def _deepstack(deep_DVM: Tensor, visual_BS: Tensor) -> dict[str, Any]:
    """Arguments that only a language model with such layers knows."""
    return {"visual_pos_masks": visual_BS, "deepstack_visual_embeds": list(deep_DVM)} if len(deep_DVM) else {}


def _run(
    language_model: nn.Module,
    embeds_BSM: Tensor,
    mask_BK: Tensor,
    positions_3BS: Tensor,
    layers: Sequence[int],
    cache: Cache | None = None,
    **deepstack: Any,
) -> dict[int, Tensor]:
    """One pass; the mask covers what is in the cache too, and the cache takes this pass's keys and values in."""
    # By position, because the cache's name is not the same in all versions of the library.
    output = language_model(
        None,
        mask_BK,
        positions_3BS,
        cache,
        embeds_BSM,
        # No cache beside the one that is given.
        use_cache=False,
        # All layers' states are a memory cost that only deeper read-outs need to pay.
        output_hidden_states=any(layer != -1 for layer in layers),
        **deepstack,
    )
    return {-1: output.last_hidden_state} | {n: output.hidden_states[n] for n in layers if n != -1}
