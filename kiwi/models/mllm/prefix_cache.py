"""Two forward passes of the MLLM's language model, equal in hidden states and in the queries' gradients.

`full_forward` runs all tokens at once. `prefix_cached_forward` runs what precedes the queries without gradients into a
cache of keys and values, and differentiates only the rest. B samples, S tokens, M the MLLM's width; in the second
pass P tokens of the longest prefix, T of the suffix; D layers of visual features, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from kiwi.models.mllm.prompting import Prompt


class LanguageModelInput(NamedTuple):
    """An embedded prompt."""

    prompt: Prompt
    embeds_BSM: Tensor
    """Word embeddings, visual features and queries at their positions."""
    positions_3BS: Tensor
    deepstack_DVM: Tensor
    """Features added at the visual tokens after each of the first D layers; D is 0 in Qwen2.5-VL."""


LanguageModelForward = Callable[[nn.Module, LanguageModelInput, Sequence[int]], dict[int, Tensor]]
"""From the language model, its input and layer indices to the hidden states (B, S, M) of these layers."""


def full_forward(language_model: nn.Module, inputs: LanguageModelInput, layers: Sequence[int]) -> dict[int, Tensor]:
    """Run all tokens in one pass, as trainable weights need it."""
    prompt = inputs.prompt
    return _forward(
        language_model,
        inputs.embeds_BSM,
        prompt.attention_mask_BS,
        inputs.positions_3BS,
        layers,
        **_deepstack(inputs.deepstack_DVM, prompt.token_types_BS > 0),
    )


def prefix_cached_forward(
    language_model: nn.Module, inputs: LanguageModelInput, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Run the tokens before the queries without gradients into a key-value cache, then the queries and what follows.

    Exact while the language model is frozen: attention is causal, so that nothing before the queries depends on them.
    Only the suffix is kept for the backward pass.
    """
    prompt, embeds_BSM = inputs.prompt, inputs.embeds_BSM
    suffix_BS = _suffix(prompt)
    batch, prefix_length = len(suffix_BS), suffix_BS.shape[1] - int(suffix_BS[0].sum())
    # In a shorter row these columns reach into the suffix, which is masked there: the padding of its prefix.
    prefix_BP = (prompt.attention_mask_BS.bool() & ~suffix_BS)[:, :prefix_length]
    cache = DynamicCache()
    with torch.no_grad():
        prefix = _forward(
            language_model,
            embeds_BSM[:, :prefix_length],
            prefix_BP,
            inputs.positions_3BS[:, :, :prefix_length],
            layers,
            cache,
            **_deepstack(inputs.deepstack_DVM, prompt.token_types_BS[:, :prefix_length] > 0),
        )
    suffix_BT = suffix_BS[suffix_BS].view(batch, -1)
    mask_BS = torch.cat((prefix_BP, suffix_BT), dim=1)
    positions_3BT = inputs.positions_3BS[:, suffix_BS].unflatten(1, suffix_BT.shape)
    embeds_BTM = embeds_BSM[suffix_BS].unflatten(0, suffix_BT.shape)
    suffix = _forward(language_model, embeds_BTM, mask_BS, positions_3BT, layers, cache)
    # Back to the prompt's order, with the padding behind the suffix instead of before it.
    order_BS = mask_BS.int().argsort(dim=1, descending=True, stable=True)
    return {
        layer: torch.cat((prefix[layer], suffix[layer]), dim=1).take_along_dim(order_BS[..., None], dim=1)
        for layer in prefix
    }


def _suffix(prompt: Prompt) -> Tensor:
    """True from the first query to the end of a sample (B, S); the same number of tokens in all samples."""
    counts_B = ((prompt.queries_BS.cumsum(dim=1) > 0) & prompt.attention_mask_BS.bool()).sum(dim=1)
    assert len(counts_B.unique()) == 1, "a batch has one template and one number of queries"
    # Without queries the last token is the suffix, so that there is one.
    return prompt.tail_BS(max(1, int(counts_B[0])))


def _deepstack(deepstack_DVM: Tensor, visual_BS: Tensor) -> dict[str, Any]:
    """Arguments that only a language model with DeepStack layers accepts."""
    if not len(deepstack_DVM):
        return {}
    return {"visual_pos_masks": visual_BS, "deepstack_visual_embeds": list(deepstack_DVM)}


def _forward(
    language_model: nn.Module,
    embeds_BSM: Tensor,
    mask_BK: Tensor,
    positions_3BS: Tensor,
    layers: Sequence[int],
    cache: Cache | None = None,
    **deepstack: Any,
) -> dict[int, Tensor]:
    """One pass. The mask covers the cached tokens too; this pass's keys and values are added to the cache."""
    # By position, because the name of the cache's argument differs between versions of the library.
    output = language_model(
        None,
        mask_BK,
        positions_3BS,
        cache,
        embeds_BSM,
        use_cache=False,  # no other cache beside this one
        # The states of all layers cost memory that only read-outs of earlier layers need.
        output_hidden_states=any(layer != -1 for layer in layers),
        **deepstack,
    )
    return {-1: output.last_hidden_state} | {n: output.hidden_states[n] for n in layers if n != -1}
