import pytest
import torch

from kiwi.errors import SpecError
from kiwi.models.connectors import Context, LatentConnector, NoConnector, QueryConnector, join_contexts
from kiwi.models.mllm.prompting import Prompt

QUERIES, REFERENCES, LENGTHS = slice(5, 8), slice(1, 4), (10, 8)


@pytest.fixture
def prompt():
    """Two samples of 10 and 8 tokens, with three queries each, and three and two tokens of a reference."""
    shape = (2, 10)
    queries, references, attention = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    queries[0, 5:8] = queries[1, 4:7] = True
    references[0, 1:4] = references[1, 1:3] = True
    attention[0, :10] = attention[1, :8] = True
    ids = torch.zeros(shape, dtype=torch.long)
    return Prompt(ids, attention.long(), queries, references, ids.int(), None, None, None, None)


@pytest.fixture
def states():
    torch.manual_seed(0)
    return {-1: torch.randn(2, 10, 6), 1: torch.randn(2, 10, 6)}


def randomise(module):
    """Initialise the last layer, which starts at zero, randomly, and return the module."""
    torch.nn.init.normal_(module.connector[2].weight)
    return module


def test_queries_are_read_at_their_own_positions_or_at_the_tail(prompt, states):
    positions = {"queries": ((5, 8), (4, 7)), "tail": ((7, 10), (5, 8))}
    for readout, spans in positions.items():
        module = randomise(QueryConnector(image=3, video=3, reference=3, readout=readout).build(6, 8))
        context = module(states, prompt)
        expected = torch.stack([states[-1][row, a:b] for row, (a, b) in enumerate(spans)])
        assert torch.allclose(context.tokens_BND, module.connector(expected))
        assert context.mask_BN is None


def test_several_layers_are_concatenated(prompt, states):
    query = randomise(QueryConnector(layers=(1, -1)).build(6, 8))
    assert query.connector[0].in_features == 12
    concatenated = torch.cat((states[1], states[-1]), dim=-1)[0, 5:8]
    assert torch.allclose(query(states, prompt).tokens_BND[0], query.connector(concatenated))
    latent = randomise(LatentConnector(layers=(1,)).build(6, 8))
    context = latent(states, prompt)
    assert torch.allclose(context.tokens_BND[0], latent.connector(states[1][0, 1:4]))
    assert context.mask_BN.tolist() == [[True] * 3, [True, True, False]]


def test_the_context_is_references_then_queries_with_padding_masked(prompt, states):
    query, latent = (randomise(spec.build(6, 8)) for spec in (QueryConnector(), LatentConnector()))
    joined = join_contexts(latent(states, prompt), query(states, prompt))
    assert joined.tokens_BND.shape == (2, 6, 8)
    assert torch.equal(joined.tokens_BND[:, 3:], query(states, prompt).tokens_BND)
    assert joined.mask_BN.tolist() == [[True] * 6, [True, True, False, True, True, True]]
    unpadded = Context(torch.zeros(2, 1, 8), None)
    assert join_contexts(unpadded, unpadded).mask_BN is None


def test_a_disabled_connector_has_no_queries_and_no_context_tokens(prompt, states):
    module = NoConnector().build(6, 8)
    assert module.queries_for("video").shape == (0, 6)
    assert module.layers == ()
    assert module(states, prompt).tokens_BND.shape == (2, 0, 8)
    assert not list(module.parameters())
    latent = randomise(LatentConnector().build(6, 8))
    assert torch.equal(
        join_contexts(latent(states, prompt), module(states, prompt)).tokens_BND, latent(states, prompt).tokens_BND
    )


def test_randomly_initialised_connectors_give_a_context_of_zeros(prompt, states):
    for spec in (QueryConnector(), LatentConnector()):
        assert spec.build(6, 8)(states, prompt).tokens_BND.abs().max() == 0


@pytest.mark.parametrize(
    ("spec", "values", "code"),
    [
        (QueryConnector, {"video": 0}, "out-of-range"),
        (QueryConnector, {"layers": ()}, "invalid-layers"),
        (LatentConnector, {"layers": (-1, -1)}, "invalid-layers"),
    ],
)
def test_counts_and_layers_out_of_range_are_rejected(spec, values, code):
    with pytest.raises(SpecError, check=lambda error: error.code == code):
        spec(**values)
