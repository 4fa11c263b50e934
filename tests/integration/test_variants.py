"""Every variant of experiments/ablations/variants.yaml can be built, trained and used, and "off" has no effect."""

from fractions import Fraction
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml

from kiwi.data.sample import EditSample, collate
from kiwi.editing.editor import KiwiEditor
from kiwi.encoded import TaskKind
from kiwi.media.video import Video
from kiwi.models.injection import AddSource, ChannelConcatSource, NoSource, SharedEmbeddingSource, TokenConcatSource
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling
from kiwi.models.scaling import ConstantScale, FunctionScale, LearnableScale
from kiwi.spec import diff, override
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.optim import AdamW
from kiwi.weights.adapters import without_base_layer

ROOT = Path(__file__).parents[2]
VARIANTS = yaml.safe_load((ROOT / "experiments/ablations/variants.yaml").read_text())
SMALL = {"query.image": 2, "query.video": 2, "query.reference": 2, "source.scale.bins": 5}


def variant(config, changes):
    """The variant at the test's size, with smaller counts where they only cost time."""
    return override(config, {path: SMALL.get(path, value) for path, value in changes.items()})


def label(changes):
    return ", ".join(f"{path}={value}" for path, value in changes.items()) or "as published"


def batches():
    """One batch of two samples for every task kind; those with references have two each."""
    rng = np.random.default_rng(0)

    def sample(task, name, frames, references):
        source, target = rng.integers(0, 256, (2, frames, 32, 48, 3), dtype=np.uint8)
        pictures = rng.integers(0, 256, (references, 32, 48, 3), dtype=np.uint8)
        return EditSample(name, task, "Make it snow", source.shape[:3], source, target, tuple(pictures), pictures)

    sizes = {TaskKind.image: (1, 0), TaskKind.video: (5, 0), TaskKind.reference: (5, 2)}
    return [collate([sample(task, f"{task}{i}", *sizes[task]) for i in range(2)]) for task in sizes]


def trained(config, steps=3):
    """A LitKiwi after some steps of Lightning's loop, and its initial weights."""
    module = LitKiwi(config, optim=AdamW(lr=1e-2, warmup_steps=0))
    torch.manual_seed(0)
    torch.nn.init.normal_(module.editor.dit.head.head.weight, std=0.1)
    before = {name: tensor.clone() for name, tensor in module.editor.state_dict().items()}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
    return module.editor, before


def edited(model):
    video = Video(np.random.default_rng(1).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8), Fraction(8))
    picture = np.random.default_rng(2).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    defaults = EditingDefaults(max_pixels=32 * 48, max_frames=5, sampling=Sampling(steps=2))
    return KiwiEditor(model, defaults).edit(video, "Make it snow", [picture, picture])


@pytest.mark.parametrize("changes", VARIANTS, ids=label)
def test_every_variant_trains_and_edits(tiny_config, changes):
    config = variant(tiny_config, changes)
    assert changes == {} or diff(tiny_config, config)
    model, before = trained(config)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved <= trainable
    assert len(moved) > 0.5 * len(trainable), sorted(trainable - moved)
    result = edited(model)
    assert result.frames_FHWC.shape == (5, 32, 48, 3)
    assert result.frames_FHWC.std() > 0


@pytest.fixture(scope="module")
def initial_weights(tiny_config):
    return KiwiEdit(tiny_config, seed=3).state_dict()


@pytest.mark.parametrize("changes", VARIANTS, ids=label)
def test_removing_or_replacing_a_component_changes_no_other_initial_weight(tiny_config, initial_weights, changes):
    other = KiwiEdit(variant(tiny_config, changes), seed=3).state_dict()
    touched = {path.split(".")[0] for path in changes if "tuning" not in path}
    shared = {without_base_layer(name): tensor for name, tensor in other.items()}
    untouched = {name for name in initial_weights if name.split(".")[0] not in touched}
    assert untouched <= shared.keys()
    assert all(torch.equal(initial_weights[name], shared[name]) for name in untouched)


ADDITIVE = {
    "sigma": AddSource(),
    "learnable": AddSource(scale=LearnableScale()),
    "function": AddSource(scale=FunctionScale()),
    "constant": AddSource(scale=ConstantScale()),
    "channels": ChannelConcatSource(),
}


def velocity(model):
    batch = batches()[2]
    with torch.no_grad():
        conditions = model.encode(batch)
        latents = torch.randn(conditions.source_BCFHW.shape, generator=torch.Generator().manual_seed(0))
        return model(latents, torch.tensor([0.8, 0.4]), conditions)


@pytest.fixture(scope="module")
def trained_without_source(tiny_config):
    return trained(tiny_config.replace(source=NoSource()))[0].eval()


@pytest.mark.parametrize("name", ADDITIVE)
def test_a_zero_initialised_injection_equals_off_bitwise_at_step_zero_and_differs_after_training(
    tiny_config, trained_without_source, name
):
    on, off = (KiwiEdit(tiny_config.replace(source=source)).eval() for source in (ADDITIVE[name], NoSource()))
    for model in (on, off):
        torch.manual_seed(0)
        torch.nn.init.normal_(model.dit.head.head.weight)
    assert torch.equal(velocity(on), velocity(off))
    assert velocity(on).abs().max() > 0.1
    with_source, _ = trained(tiny_config.replace(source=ADDITIVE[name]))
    assert (velocity(with_source.eval()) - velocity(trained_without_source)).abs().max() > 1e-3


@pytest.mark.parametrize("source", [SharedEmbeddingSource(), TokenConcatSource(), ChannelConcatSource(init="xavier")])
def test_the_other_injections_differ_from_off_at_step_zero(tiny_config, source):
    on, off = (KiwiEdit(tiny_config.replace(source=s)).eval() for s in (source, NoSource()))
    for model in (on, off):
        torch.manual_seed(0)
        torch.nn.init.normal_(model.dit.head.head.weight)
    assert (velocity(on) - velocity(off)).abs().max() > 1e-4
