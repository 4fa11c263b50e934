import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from kiwi.data.datamodule import EditData
from kiwi.data.sample import to_pixels
from kiwi.data.sandbox import SandboxEdits, SandboxQuestions
from kiwi.errors import InputError
from kiwi.models.vae.wan import NewVae, WanVae
from kiwi.training.modules.vae import LitVae


def test_an_export_replaces_the_last_one_and_no_other_files(tmp_path, monkeypatch):
    module = LitVae(NewVae(z_dim=4, base_dim=4))
    monkeypatch.setattr(module, "_compute_latent_statistics", lambda: (torch.zeros(4), torch.ones(4)))
    for _ in range(2):
        module.export(tmp_path / "vae", self_contained=True)
    assert (tmp_path / "vae/diffusion_pytorch_model.safetensors").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/config.json").write_text("{}")
    with pytest.raises(InputError, check=lambda error: error.code == "occupied-folder"):
        module.export(tmp_path / "notes", self_contained=True)
    (tmp_path / "vae/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"Got: notes\.txt"):
        module.export(tmp_path / "vae", self_contained=True)
    assert (tmp_path / "vae/notes.txt").read_text() == "mine"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["notes", "vae"]


def test_a_vae_exported_at_half_the_size_decodes_nearly_the_same(tmp_path, monkeypatch):
    for dtype in ("float32", "float16"):
        module = LitVae(NewVae(z_dim=4, base_dim=4), export_dtype=dtype)
        monkeypatch.setattr(module, "_compute_latent_statistics", lambda: (torch.zeros(4), torch.ones(4)))
        module.export(tmp_path / dtype, self_contained=True)
        assert next(module.parameters()).dtype == torch.float32
        assert not module.is_pretrained
    whole, half = (LitVae(WanVae(path=str(tmp_path / dtype))) for dtype in ("float32", "float16"))
    assert whole.is_pretrained
    files = [tmp_path / dtype / "diffusion_pytorch_model.safetensors" for dtype in ("float32", "float16")]
    assert 1.5 < files[0].stat().st_size / files[1].stat().st_size < 2.1
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        decoded = [vae.autoencoder.decode(vae.autoencoder.encode(clip)) for vae in (whole, half)]
    assert 0 < (decoded[0] - decoded[1]).abs().max() < 0.05


def batch_of(category):
    data = EditData(train=[SandboxEdits(items=4, categories=[category])], multiple=4, batch_size=2, num_workers=0)
    data.setup()
    return next(iter(data.fresh_train_dataloader()))


def test_reference_images_are_trained_on_too():
    module, batch, losses = LitVae(NewVae(z_dim=4, base_dim=4), kl_weight=0), batch_of("subject_reference"), []
    module.log_metric = lambda name, value, **_: losses.append(float(value))
    module.all_gather = lambda value: value
    module.training_step(batch, 0)
    with torch.no_grad():
        clips = torch.cat((batch.source_BCFHW, batch.target_BCFHW))
        differences = [
            (module.autoencoder.decode_unclamped(module.autoencoder.vae.encode(videos).latent_dist.mode()) - videos)
            for videos in (clips, batch.references_BRCHW[:, 0, :, None])
        ]
    pixel_differences = torch.cat([difference.flatten() for difference in differences])
    assert losses == pytest.approx([float(pixel_differences.square().mean())], rel=1e-5)
    batch.references_BRCHW = torch.zeros_like(batch.references_BRCHW)
    module.training_step(batch, 0)
    assert losses[1] != pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize(("category", "references"), [("subject_reference", 2), ("local_add", 0)])
def test_validation_measures_clips_and_reference_images_separately(category, references):
    module, batch, metrics = LitVae(NewVae(z_dim=4, base_dim=4)).eval(), batch_of(category), {}
    module.log = lambda name, value, **_: metrics.setdefault(name, []).append(value)
    with torch.no_grad():
        module.validation_step(batch, 0)
        decoded = module.autoencoder.decode(module.autoencoder.encode(batch.source_BCFHW))
    assert {name: len(values) for name, values in metrics.items()} == {
        **dict.fromkeys(("val/psnr", "val/ssim"), 4),
        **(dict.fromkeys(("val/picture_psnr", "val/picture_ssim"), references) if references else {}),
    }
    reconstruction, source = (torch.from_numpy(to_pixels(video[0])).float() for video in (decoded, batch.source_BCFHW))
    frames = [peak_signal_noise_ratio(*pair, data_range=255.0) for pair in zip(reconstruction, source, strict=True)]
    assert metrics["val/psnr"][0] == pytest.approx(float(torch.stack(frames).mean()), rel=1e-5)


def test_samples_without_a_target_such_as_questions_to_the_mllm_are_rejected():
    module = LitVae(NewVae(z_dim=4, base_dim=8))
    data = EditData(train=[SandboxQuestions(items=2)], multiple=8, num_workers=0)
    data.setup()
    batch = next(iter(data.fresh_train_dataloader()))
    with pytest.raises(InputError, check=lambda error: error.code == "missing-target"):
        module.training_step(batch, 0)
