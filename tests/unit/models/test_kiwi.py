import pytest
import torch

from kiwi.errors import InputError, SpecError
from kiwi.models.connectors import Context
from kiwi.models.dit.transformer import RecomputeActivations
from kiwi.models.injection import NoReference, NoSource, PrependReference
from kiwi.models.kiwi import Conditions, KiwiEdit


def inputs(model, batch=2, references=1, context=6):
    torch.manual_seed(1)
    shape = (batch, model.config.dit.latent_channels, 3, 4, 6)
    reference_shape = (batch, model.config.dit.latent_channels, references, 4, 6)
    tokens = torch.randn(batch, context, model.config.dit.dim)
    return torch.randn(shape), Conditions(Context(tokens, None), torch.randn(shape), torch.randn(reference_shape))


def randomised(config, **parts):
    """A model without zero weights, so that every part has an effect."""
    model = KiwiEdit(config.replace(**parts)).eval()
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def select_sample(conditions, index):
    context, source, reference = conditions
    row = slice(index, index + 1)
    return Conditions(Context(context.tokens_BND[row], None), source[row], reference[row])


def test_each_sample_of_a_batch_has_its_own_noise_level(tiny_config):
    """The published code mixes the samples' modulation; here a batch equals its samples one by one."""
    model = randomised(tiny_config)
    latents, conditions = inputs(model)
    sigma = torch.tensor([0.9, 0.3])
    together = model(latents, sigma, conditions)
    alone = [model(latents[i : i + 1], sigma[i : i + 1], select_sample(conditions, i)) for i in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(model(latents, sigma.flip(0), conditions), together, atol=1e-3)


def test_source_reference_and_context_each_change_the_velocity(tiny_config):
    model = randomised(tiny_config)
    latents, conditions = inputs(model)
    sigma = torch.tensor([0.8, 0.8])
    base = model(latents, sigma, conditions)
    flipped = {
        "context": Context(conditions.context.tokens_BND.flip(0), None),
        "source_BCFHW": conditions.source_BCFHW.flip(0),
        "reference_BCRHW": conditions.reference_BCRHW.flip(0),
    }
    for field, value in flipped.items():
        changed = conditions._replace(**{field: value})
        assert (model(latents, sigma, changed) - base).abs().max() > 1e-3, field


def test_the_source_has_no_effect_at_sigma_zero_and_full_effect_at_one(tiny_config):
    model = randomised(tiny_config)
    latents, conditions = inputs(model)
    changed = conditions._replace(source_BCFHW=conditions.source_BCFHW.flip(0))

    def difference(sigma):
        sigma_B = torch.full((2,), sigma)
        return float((model(latents, sigma_B, conditions) - model(latents, sigma_B, changed)).detach().abs().max())

    assert difference(0.0) == 0.0
    assert difference(1.0) > 1e-3


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_any_number_of_references_is_accepted(tiny_config, count):
    model = randomised(tiny_config)
    latents, conditions = inputs(model, references=count)
    assert model(latents, torch.tensor([0.5, 0.5]), conditions).shape == latents.shape


def test_an_edit_without_reference_images_is_that_of_a_model_without_references(tiny_config):
    with_none = randomised(tiny_config)
    without = randomised(tiny_config, reference=NoReference())
    without.load_state_dict(with_none.state_dict(), strict=False)
    latents, conditions = inputs(with_none, references=0)
    sigma = torch.tensor([0.5, 0.7])
    assert torch.equal(with_none(latents, sigma, conditions), without(latents, sigma, conditions))


def test_prepended_and_appended_references_differ_only_by_position(tiny_config):
    last, first = randomised(tiny_config), randomised(tiny_config, reference=PrependReference())
    first.load_state_dict(last.state_dict())
    latents, conditions = inputs(last)
    sigma = torch.tensor([0.5, 0.7])
    assert not torch.allclose(last(latents, sigma, conditions), first(latents, sigma, conditions), atol=1e-4)
    empty = conditions._replace(reference_BCRHW=conditions.reference_BCRHW[:, :, :0])
    assert torch.equal(last(latents, sigma, empty), first(latents, sigma, empty))


def test_a_zero_initialised_source_gives_exactly_the_output_of_no_source(tiny_config):
    with_source, without = KiwiEdit(tiny_config), KiwiEdit(tiny_config.replace(source=NoSource()))
    torch.nn.init.normal_(with_source.dit.head.head.weight)
    without.dit.head.head.weight.data.copy_(with_source.dit.head.head.weight)
    latents, conditions = inputs(with_source)
    sigma = torch.tensor([0.5, 0.9])
    assert torch.equal(with_source(latents, sigma, conditions), without(latents, sigma, conditions))
    assert with_source(latents, sigma, conditions).abs().max() > 0


def test_removing_a_part_does_not_change_the_initial_weights_of_others(tiny_config):
    whole = KiwiEdit(tiny_config, seed=3).state_dict()
    less = KiwiEdit(tiny_config.replace(source=NoSource(), reference=NoReference()), seed=3).state_dict()
    assert whole.keys() - less.keys() == {
        f"{p}.patch_embedding.{k}" for p in ("source", "reference") for k in ("weight", "bias")
    }
    assert all(torch.equal(whole[name], tensor) for name, tensor in less.items())
    assert not torch.equal(
        KiwiEdit(tiny_config, seed=4).state_dict()["dit.blocks.0.ffn.0.weight"], whole["dit.blocks.0.ffn.0.weight"]
    )


def test_padding_in_the_context_has_no_effect(tiny_config):
    model = randomised(tiny_config)
    latents, conditions = inputs(model, batch=1, context=5)
    padded = torch.cat((conditions.context.tokens_BND, 100 * torch.ones(1, 3, model.config.dit.dim)), dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 3])
    masked = conditions._replace(context=Context(padded, mask))
    sigma = torch.tensor([0.6])
    assert torch.allclose(model(latents, sigma, masked), model(latents, sigma, conditions), atol=1e-5)


@pytest.mark.parametrize(("every", "recomputed"), [(1, [0, 1]), (2, [0])])
def test_recomputed_blocks_run_twice_and_give_the_same_gradients(tiny_config, every, recomputed):
    plain = randomised(tiny_config)
    saving = randomised(tiny_config, dit=tiny_config.dit.replace(activations=RecomputeActivations(every=every)))
    saving.load_state_dict(plain.state_dict())
    latents, conditions = inputs(plain)
    calls = []
    for index, block in enumerate(saving.dit.blocks):
        block.register_forward_pre_hook(lambda *args, index=index: calls.append(index))
    with torch.no_grad():
        saving(latents, torch.tensor([0.4, 0.8]), conditions)
    assert calls == [0, 1]
    for model in (plain, saving):
        model(latents, torch.tensor([0.4, 0.8]), conditions).square().mean().backward()
    assert sorted(calls[4:]) == recomputed
    for (name, a), (_, b) in zip(plain.dit.named_parameters(), saving.dit.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-7), name


def test_odd_latents_are_rejected_not_cropped(tiny_config):
    model = KiwiEdit(tiny_config)
    latents, conditions = inputs(model)
    with pytest.raises(InputError, check=lambda error: error.code == "unsupported-video-size"):
        model(latents[:, :, :, :3], torch.tensor([0.5, 0.5]), conditions)


def test_vae_and_dit_must_agree_on_latent_channels(tiny_config):
    with pytest.raises(SpecError, match=r"4 latent channels.* is 6"):
        KiwiEdit(tiny_config.replace(dit=tiny_config.dit.replace(latent_channels=6)))


def test_frozen_parts_stay_frozen_and_in_eval_mode(tiny_config):
    model = KiwiEdit(tiny_config).train()
    assert model.dit.training
    assert not model.vae.training
    assert not model.mllm.training
    assert not any(p.requires_grad for part in (model.vae, model.mllm) for p in part.parameters())


def test_an_empty_context_is_attended_to_without_effect(tiny_config):
    """With both connectors off, cross-attention gives its bias, not NaN."""
    model = randomised(tiny_config)
    latents, conditions = inputs(model, context=0)
    velocity = model(latents, torch.tensor([0.5, 0.7]), conditions)
    assert torch.isfinite(velocity).all()
    x = torch.randn(2, 5, 48)
    attention = model.dit.blocks[0].cross_attn
    assert torch.allclose(
        attention(x, attention.project(torch.zeros(2, 0, 48), None)), attention.o.bias.expand(2, 5, 48)
    )


def test_the_parts_of_an_empty_model_are_on_the_meta_device(tiny_config):
    model = KiwiEdit(tiny_config, empty=True)
    meta = {name for name, p in model.named_parameters() if p.is_meta}
    assert {name.split(".")[0] for name in meta} == {"dit", "query", "latent", "source", "reference"}
    assert all(not name.startswith(("vae", "mllm")) for name in meta)
