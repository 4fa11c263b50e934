"""Two forward passes of the MLLM's language model, with equal hidden states and gradients of the queries.

`full_forward` runs all tokens at once. `prefix_cached_forward` runs the tokens before the queries (the prefix) without
gradients into a key-value cache, then the queries and the tokens after them (the suffix) with gradients.

B samples, S tokens, M the MLLM's width, 3 axes of position ids, P tokens of the longest prefix, T tokens of the suffix,
K cached and new tokens of one pass, D layers that add visual features, V visual tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from kiwi.models.mllm.prompting import Prompt


class LanguageModelInput(NamedTuple):
    """A batch of prompts with their embeddings."""

    prompt: Prompt
    embeds_BSM: Tensor
    """Embeddings of all tokens: text, visual features and queries."""
    positions_3BS: Tensor
    deepstack_DVM: Tensor
    """Features added to the hidden states of visual tokens after each of the first D layers; D is 0 in Qwen2.5-VL."""


LanguageModelForward = Callable[[nn.Module, LanguageModelInput, Sequence[int]], dict[int, Tensor]]
"""Function from the language model, its input and layer indices to the hidden states (B, S, M) of these layers."""


def full_forward(language_model: nn.Module, inputs: LanguageModelInput, layers: Sequence[int]) -> dict[int, Tensor]:
    """Run all tokens in one pass; required if the language model has trainable weights."""
    prompt = inputs.prompt
    return _run_language_model(
        language_model,
        inputs.embeds_BSM,
        prompt.attention_mask_BS,
        inputs.positions_3BS,
        layers,
        **_make_deepstack_arguments(inputs.deepstack_DVM, prompt.token_types_BS > 0),
    )


def prefix_cached_forward(
    language_model: nn.Module, inputs: LanguageModelInput, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Run the prefix without gradients into a key-value cache, then the suffix with gradients.

    This is exact if the language model is frozen: attention is causal, so that the prefix does not depend on the
    queries. The backward pass needs only the activations of the suffix.
    """
    prompt, embeds_BSM = inputs.prompt, inputs.embeds_BSM
    suffix_mask_BS = _make_suffix_mask(prompt)
    batch, prefix_length = len(suffix_mask_BS), suffix_mask_BS.shape[1] - int(suffix_mask_BS[0].sum())
    # In shorter samples the first P columns include tokens of the suffix; they are masked, as padding of the prefix.
    prefix_mask_BP = (prompt.attention_mask_BS.bool() & ~suffix_mask_BS)[:, :prefix_length]
    cache = DynamicCache()
    with torch.no_grad():
        prefix_states = _run_language_model(
            language_model,
            embeds_BSM[:, :prefix_length],
            prefix_mask_BP,
            inputs.positions_3BS[:, :, :prefix_length],
            layers,
            cache,
            **_make_deepstack_arguments(inputs.deepstack_DVM, prompt.token_types_BS[:, :prefix_length] > 0),
        )
    suffix_mask_BT = suffix_mask_BS[suffix_mask_BS].view(batch, -1)
    mask_BS = torch.cat((prefix_mask_BP, suffix_mask_BT), dim=1)
    positions_3BT = inputs.positions_3BS[:, suffix_mask_BS].unflatten(1, suffix_mask_BT.shape)
    embeds_BTM = embeds_BSM[suffix_mask_BS].unflatten(0, suffix_mask_BT.shape)
    suffix_states = _run_language_model(language_model, embeds_BTM, mask_BS, positions_3BT, layers, cache)
    # Restore prompt order: move the padding between prefix and suffix to the end.
    order_BS = mask_BS.int().argsort(dim=1, descending=True, stable=True)
    return {
        layer: torch.cat((prefix_states[layer], suffix_states[layer]), dim=1).take_along_dim(order_BS[..., None], dim=1)
        for layer in prefix_states
    }


def _make_suffix_mask(prompt: Prompt) -> Tensor:
    """Mask (B, S) that is True from the first query to the last token; all samples have equally many such tokens."""
    counts_B = ((prompt.queries_BS.cumsum(dim=1) > 0) & prompt.attention_mask_BS.bool()).sum(dim=1)
    assert len(counts_B.unique()) == 1, "all samples of a batch have the same template and number of queries"
    # Without queries the suffix is the last token, because it must not be empty.
    return prompt.tail_BS(max(1, int(counts_B[0])))


def _make_deepstack_arguments(deepstack_DVM: Tensor, visual_BS: Tensor) -> dict[str, Any]:
    """Keyword arguments that only a language model with DeepStack layers accepts."""
    if not len(deepstack_DVM):
        return {}
    return {"visual_pos_masks": visual_BS, "deepstack_visual_embeds": list(deepstack_DVM)}


def _run_language_model(
    language_model: nn.Module,
    embeds_BSM: Tensor,
    mask_BK: Tensor,
    positions_3BS: Tensor,
    layers: Sequence[int],
    cache: Cache | None = None,
    **deepstack: Any,
) -> dict[int, Tensor]:
    """Run one pass. The mask covers cached tokens too; the keys and values of this pass are added to the cache."""
    # Positional arguments, because the name of the cache argument differs between versions of transformers.
    output = language_model(
        None,
        mask_BK,
        positions_3BS,
        cache,
        embeds_BSM,
        use_cache=False,  # do not create another cache
        # Keeping the hidden states of all layers costs memory, so that they are only kept if needed.
        output_hidden_states=any(layer != -1 for layer in layers),
        **deepstack,
    )
    return {-1: output.last_hidden_state} | {n: output.hidden_states[n] for n in layers if n != -1}
