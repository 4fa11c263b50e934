import pytest
import torch

from kiwi.errors import SpecError
from kiwi.models.connectors import Context, LatentConnector, NoConnector, QueryConnector, join_contexts
from kiwi.models.mllm.prompting import Prompt

QUERIES, REFERENCES, LENGTHS = slice(5, 8), slice(1, 4), (10, 8)


@pytest.fixture
def prompt():
    """Two samples of 10 and 8 tokens; three queries each, three and two tokens of a reference."""
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


def started(module):
    torch.nn.init.normal_(module.connector[2].weight)
    return module


def test_queries_are_read_at_their_own_positions_or_at_the_tail(prompt, states):
    at = {"queries": ((5, 8), (4, 7)), "tail": ((7, 10), (5, 8))}
    for readout, spans in at.items():
        module = started(QueryConnector(image=3, video=3, reference=3, readout=readout).build(6, 8))
        found = module(states, prompt)
        wanted = torch.stack([states[-1][row, a:b] for row, (a, b) in enumerate(spans)])
        assert torch.allclose(found.tokens_BND, module.connector(wanted))
        assert found.mask_BN is None


def test_several_layers_are_read_side_by_side(prompt, states):
    query = started(QueryConnector(layers=(1, -1)).build(6, 8))
    assert query.connector[0].in_features == 12
    wanted = torch.cat((states[1], states[-1]), dim=-1)[0, 5:8]
    assert torch.allclose(query(states, prompt).tokens_BND[0], query.connector(wanted))
    latent = started(LatentConnector(layers=(1,)).build(6, 8))
    found = latent(states, prompt)
    assert torch.allclose(found.tokens_BND[0], latent.connector(states[1][0, 1:4]))
    assert found.mask_BN.tolist() == [[True] * 3, [True, True, False]]


def test_the_context_is_references_then_queries_with_the_padding_marked(prompt, states):
    query, latent = (started(spec.build(6, 8)) for spec in (QueryConnector(), LatentConnector()))
    joined = join_contexts(latent(states, prompt), query(states, prompt))
    assert joined.tokens_BND.shape == (2, 6, 8)
    assert torch.equal(joined.tokens_BND[:, 3:], query(states, prompt).tokens_BND)
    assert joined.mask_BN.tolist() == [[True] * 6, [True, True, False, True, True, True]]
    whole = Context(torch.zeros(2, 1, 8), None)
    assert join_contexts(whole, whole).mask_BN is None


def test_off_is_no_queries_and_no_tokens(prompt, states):
    module = NoConnector().build(6, 8)
    assert module.table("video").shape == (0, 6)
    assert module.layers == ()
    assert module(states, prompt).tokens_BND.shape == (2, 0, 8)
    assert not list(module.parameters())
    latent = started(LatentConnector().build(6, 8))
    assert torch.equal(
        join_contexts(latent(states, prompt), module(states, prompt)).tokens_BND, latent(states, prompt).tokens_BND
    )


def test_both_start_with_an_empty_context(prompt, states):
    for spec in (QueryConnector(), LatentConnector()):
        assert spec.build(6, 8)(states, prompt).tokens_BND.abs().max() == 0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: QueryConnector(video=0), "at least one query"),
        (lambda: QueryConnector(layers=()), "one or more MLLM layers"),
        (lambda: LatentConnector(layers=(-1, -1)), "each once"),
    ],
)
def test_counts_and_layers_out_of_range_are_refused(make, told):
    with pytest.raises(SpecError, match=told):
        make()
