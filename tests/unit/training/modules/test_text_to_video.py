"""LitBase: the model uses its captions, and an editor's DiT starts from the trained weights."""

import json
from dataclasses import replace

import lightning as L
import pytest
import torch

from kiwi.data.datamodule import EditData
from kiwi.data.sandbox import SandboxEdits
from kiwi.data.sources import Manifest
from kiwi.errors import InputError, SpecError
from kiwi.models.dit.base import WanBase
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.kiwi import KiwiConfig, KiwiEdit
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.text_to_video import TextEncoder, TextToVideo, TextToVideoConfig
from kiwi.models.vae.wan import NewVae
from kiwi.training.modules.text_to_video import LitBase
from kiwi.training.optim import AdamW

DIT = DiTConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=2, freq_dim=32, latent_channels=4)
CONFIG = TextToVideoConfig(
    dit=DIT, vae=NewVae(z_dim=4, base_dim=4), text=TextEncoder(tokenizer="sandbox/mllm", dim=32, layers=1, heads=2)
)


@pytest.fixture
def data():
    return EditData(
        train=[SandboxEdits(items=28, max_frames=5), SandboxEdits(items=14, max_frames=1, seed=1)],
        validation=[SandboxEdits(items=4, max_frames=5, split="test")],
        multiple=8, batch_size=4, num_workers=0,
    )  # fmt: skip


def trainer(folder, **options):
    options = {"max_steps": 4, "limit_val_batches": 0, "enable_progress_bar": False, "logger": False} | options
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", use_distributed_sampler=False, enable_model_summary=False,
        enable_checkpointing=False, **options,
    )  # fmt: skip


def test_training_uses_clips_and_images_and_the_loss_falls(data, tmp_path):
    module = LitBase(CONFIG, optim=AdamW(lr=3e-3, warmup_steps=2))

    def validated():
        return trainer(tmp_path, limit_val_batches=1.0).validate(module, data, verbose=False)[0]

    before = validated()
    assert {"val/loss", "val/loss_swapped", "val/loss_blind"} <= before.keys()
    trainer(tmp_path, max_steps=40).fit(module, data)
    assert validated()["val/loss"] < 0.9 * before["val/loss"]
    assert all(parameter.grad is None for parameter in module.vae.parameters())


def test_every_part_is_trained_except_the_vae(data, tmp_path):
    module = LitBase(CONFIG, optim=AdamW(lr=1e-2, warmup_steps=0))
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    trainer(tmp_path, max_steps=6).fit(module, data)
    state = module.model.state_dict()
    assert {n.split(".")[0] for n in state if not torch.equal(before[n], state[n])} == {"dit", "text", "text_embedding"}


def test_padding_of_captions_changes_nothing():
    model = TextToVideo(CONFIG).eval()
    torch.nn.init.normal_(model.dit.head.head.weight, std=0.1)
    latents, sigma = torch.randn(1, 4, 2, 8, 8), torch.tensor([0.7])

    def velocity(captions):
        context = model.encode(captions)
        return model.velocity(
            latents.expand(len(captions), -1, -1, -1, -1), sigma, model.prepare(context, (0, 0, 2, 8, 8))
        )

    with torch.no_grad():
        short, long = "A red ring.", "A striped blue star on the left and a green cross over navy dots on white."
        single = velocity([short])[0]
        assert torch.allclose(velocity([short, long])[0], single, atol=1e-5)
        assert not torch.allclose(velocity([long])[0], single, atol=1e-3)


def test_an_editors_dit_starts_from_the_exported_folder(tmp_path, data):
    module = LitBase(CONFIG)
    trainer(tmp_path, max_steps=2).fit(module, data)
    module.export(tmp_path / "model", self_contained=True)
    config = KiwiConfig(dit=DIT.replace(base=WanBase(path=str(tmp_path / "model"))), vae=CONFIG.vae, mllm=NewQwen())
    editor_dit, trained_dit = KiwiEdit(config).dit.state_dict(), module.model.dit.state_dict()
    assert editor_dit.keys() == trained_dit.keys()
    assert all(torch.equal(editor_dit[name], trained_dit[name]) for name in editor_dit)
    assert (tmp_path / "model" / "text_encoder" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["config"]["dit"]["dim"] == 48


def test_an_export_replaces_the_last_one_and_no_other_files(tmp_path, data):
    module = LitBase(CONFIG)
    module.export(tmp_path / "model", self_contained=True)
    module.export(tmp_path / "model", self_contained=True)
    assert module.list_unexpected_files(tmp_path / "model") == []
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        module.export(tmp_path / "model", self_contained=True)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_captions_are_swapped_only_with_different_ones(data):
    data.setup()
    batch = next(iter(data.fresh_train_dataloader()))
    module = LitBase(CONFIG)
    swapped = module.swap_conditions(batch)
    assert sorted(swapped.captions) == sorted(batch.captions)
    assert all(
        caption != swapped_caption for caption, swapped_caption in zip(batch.captions, swapped.captions, strict=True)
    )
    assert module.swap_conditions(replace(batch, captions=["the same"] * len(batch.captions))) is None


def test_edits_without_captions_are_rejected(edit_folder, tmp_path):
    data = EditData(
        train=[Manifest(path="video.csv", max_frames=5)], root=str(edit_folder), max_pixels=1024, multiple=8,
        batch_size=2, num_workers=0,
    )  # fmt: skip
    with pytest.raises(InputError, check=lambda error: error.code == "missing-caption"):
        trainer(tmp_path).fit(LitBase(CONFIG), data)


def test_sizes_that_do_not_fit_are_rejected():
    with pytest.raises(SpecError, check=lambda error: error.code == "inconsistent-sizes"):
        TextToVideo(CONFIG.replace(vae=NewVae(z_dim=8, base_dim=4)))
    with pytest.raises(SpecError, match=r"text\.heads"):
        TextEncoder(tokenizer="sandbox/mllm", dim=32, heads=3)
