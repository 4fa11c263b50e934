from dataclasses import replace

import lightning as L
import pytest
import torch

from kiwi.data.augmentation import ConditionDropout
from kiwi.data.datamodule import EditData
from kiwi.data.feature_cache import EncoderFingerprints, FeatureCache
from kiwi.data.sample import collate
from kiwi.data.sources import Manifest
from kiwi.encoded import LatentDistribution, VisionFeatures
from kiwi.errors import CheckpointError, InputError, SpecError, TrainingError
from kiwi.models.vae.wan import NewVae
from kiwi.training.averaging import Ema
from kiwi.training.loss_weighting import ChangeWeighted, Uniform
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.modules.vae import LitVae
from kiwi.training.optim import AdamW


@pytest.fixture
def data(edit_folder):
    manifests = [Manifest(path="video.csv", max_frames=5), Manifest(path="reference.csv", max_frames=5)]
    return EditData(
        train=[*manifests, Manifest(path="video.csv", max_frames=1)],
        root=str(edit_folder), max_pixels=1024, multiple=8, batch_size=2, holdout=2, num_workers=0,
    )  # fmt: skip


def trainer(folder, **options):
    options = {"max_steps": 4, "limit_val_batches": 0, "enable_progress_bar": False, "logger": False} | options
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", use_distributed_sampler=False, enable_model_summary=False, **options
    )


class Recorder(L.Callback):
    """Records each step's loss and batch."""

    def __init__(self):
        self.losses, self.batches = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.batches.append(batch.ids)


def test_every_task_is_trained_and_the_loss_falls(tiny_config, data, tmp_path):
    recorder = Recorder()
    module = LitKiwi(tiny_config, optim=AdamW(lr=3e-3, warmup_steps=2))

    def validated():  # at fixed noise levels; the loss of one step depends most on its noise level
        return trainer(tmp_path, limit_val_batches=1.0).validate(module, data, verbose=False)[0]["val/loss"]

    before = validated()
    trainer(tmp_path, max_steps=40, callbacks=[recorder], enable_checkpointing=False).fit(module, data)
    kinds = {name.rsplit("/", 1)[1] + name.split(":")[0] for batch in recorder.batches for name in batch}
    assert kinds == {"5fvideo", "5freference", "1fvideo"}
    assert validated() < 0.9 * before


def test_two_runs_have_the_same_losses(tiny_config, data, tmp_path):
    def losses():
        recorder = Recorder()
        module = LitKiwi(tiny_config, optim=AdamW(lr=1e-3, warmup_steps=0))
        torch.manual_seed(len(list(tmp_path.iterdir())))  # the global generator must not matter
        trainer(tmp_path, callbacks=[recorder], enable_checkpointing=False).fit(module, data)
        return recorder.losses

    first = losses()
    (tmp_path / "other").mkdir()
    assert losses() == first


def test_noise_is_keyed_by_seed_step_and_sample(tiny_config):
    module = LitKiwi(tiny_config, seed=1)
    shape = torch.Size((2, 4, 2, 4, 4))
    noise, sigma = module.draw_noise(["a", "b"], shape, 7)
    swapped_noise, swapped_sigma = module.draw_noise(["b", "a"], shape, 7)
    assert torch.equal(noise, swapped_noise.flip(0))
    assert torch.equal(sigma, swapped_sigma.flip(0))
    assert not torch.equal(noise, module.draw_noise(["a", "b"], shape, 8)[0])
    assert not torch.equal(noise, LitKiwi(tiny_config, seed=2).draw_noise(["a", "b"], shape, 7)[0])


def test_noise_levels_fill_the_whole_schedule(tiny_config):
    """The published code rounds timesteps to bf16 first and so draws only 294 of 1000 levels."""
    module = LitKiwi(tiny_config)
    drawn = torch.cat(
        [module.draw_noise([str(i)], torch.Size((1, 1)), step)[1] for i in range(40) for step in range(50)]
    )
    assert len(drawn.unique()) == len(drawn)
    assert float(drawn.min()) < 0.1
    assert float(drawn.max()) > 0.999
    assert float(drawn.median()) == pytest.approx(float(module.editor.schedule.sigma(torch.tensor(0.5))), abs=0.02)


def test_noise_levels_are_not_rounded_when_training_in_bf16(tiny_config):
    module = LitKiwi(tiny_config)
    full = torch.cat([module.draw_noise([str(i)], torch.Size((1, 1)), 0)[1] for i in range(200)])
    with L.pytorch.plugins.HalfPrecision("bf16-true").train_step_context():
        short = torch.cat([module.draw_noise([str(i)], torch.Size((1, 1)), 0)[1] for i in range(200)])
    assert torch.equal(full, short)


def test_a_lone_validation_sample_is_swapped_with_an_earlier_one_and_never_with_itself(tiny_config, data):
    module = LitKiwi(tiny_config)
    data.batch_size = 1
    data.setup()
    batches = [b for b in data.train_dataloader() if b.task == "video" and b.source_BCFHW.shape[2] == 5]
    assert module.swap_conditions(batches[0]) is None
    swapped = module.swap_conditions(batches[1])
    assert torch.equal(swapped.source_BCFHW, batches[0].source_BCFHW)
    assert (swapped.source_frames[0] == batches[0].source_frames[0]).all()
    assert swapped.instructions == batches[1].instructions
    assert module.swap_conditions(batches[1]) is None


def test_only_the_selected_parts_are_trained(tiny_config, data, tmp_path):
    module = LitKiwi(tiny_config, optim=AdamW(lr=1e-2, warmup_steps=0), train_parts=("query", "dit"))
    before = {name: p.clone() for name, p in module.editor.state_dict().items()}
    trainer(tmp_path, max_steps=6, enable_checkpointing=False).fit(module, data)
    changed = {name.split(".")[0] for name, p in module.editor.state_dict().items() if not torch.equal(before[name], p)}
    assert changed == {"query", "dit"}


def test_the_loss_is_weighted_by_position(tiny_config, data):
    data.setup()
    batch = next(b for b in data.fresh_train_dataloader() if b.task == "video")
    losses = {}
    for weighting in (Uniform(), ChangeWeighted(factor=8.0)):
        module = LitKiwi(tiny_config, loss_weighting=weighting)
        module.all_gather = lambda tensor: tensor
        module.log = lambda *args, **kwargs: None
        losses[weighting] = float(module.training_step(batch, 0).detach())
    source, x0 = module.vae.encode(batch.source_BCFHW), module.draw_target_latents(batch)
    noise, sigma_B = module.draw_noise(batch.ids, x0.shape, 0)
    # A new editor predicts zero: its error is the velocity itself.
    squares = (noise - x0).square()
    expected = {spec: (squares * spec.weights(x0, source)).flatten(1).mean(1) for spec in losses}
    weights_B = module.network.schedule.loss_weight(sigma_B)
    for weighting, losses_B in expected.items():
        assert losses[weighting] == pytest.approx(float((losses_B * weights_B).mean()), rel=1e-4)
    assert losses[Uniform()] != pytest.approx(losses[ChangeWeighted(factor=8.0)], rel=1e-3)


def test_an_unknown_part_is_rejected(tiny_config):
    with pytest.raises(InputError, match=r"dit.*query.*latent"):
        LitKiwi(tiny_config, train_parts=("vae",))


def test_a_cosine_schedule_without_a_number_of_steps_is_rejected(tiny_config, data, tmp_path):
    module = LitKiwi(tiny_config, optim=AdamW(schedule="cosine"))
    with pytest.raises(SpecError, check=lambda error: error.code == "missing-steps"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1, max_time="00:00:00:01").fit(module, data)


class NanBatch(L.Callback):
    """Puts NaN into the third batch."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2:
            batch.target_BCFHW[:] = float("nan")
            self.ids = batch.ids


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_last_good_checkpoint(tiny_config, data, tmp_path):
    nan_batch = NanBatch()
    checkpoint_callback = L.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    module = LitKiwi(tiny_config, optim=AdamW(lr=1e-3, warmup_steps=0))
    with pytest.raises(TrainingError) as caught:
        trainer(tmp_path, callbacks=[nan_batch, checkpoint_callback]).fit(module, data)
    assert caught.value.code == "not-finite"
    assert "step 2" in str(caught.value)
    assert ", ".join(nan_batch.ids) in str(caught.value)
    assert str(checkpoint_callback.last_model_path) in str(caught.value)
    checkpoint = torch.load(checkpoint_callback.last_model_path, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_checkpoints_hold_the_trained_parts_only_and_load_without_pickle(tiny_config, data, tmp_path):
    run = trainer(tmp_path)
    module = LitKiwi(tiny_config)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[1] for name in state} == {"dit", "query", "latent", "source", "reference"}


@pytest.mark.parametrize("stop", [4, 6])
def test_a_resumed_run_equals_an_unbroken_one(tiny_config, data, tmp_path, stop):
    """The run stops in the middle of an epoch of six batches, and at its end."""

    def run(steps, checkpoint=None):
        recorder = Recorder()
        module = LitKiwi(tiny_config, optim=AdamW(lr=1e-3, warmup_steps=0), averaging=Ema(decay=0.9))
        runner = trainer(tmp_path, max_steps=steps, callbacks=[recorder], enable_checkpointing=False)
        runner.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        averages = {f"average {name}": value for name, value in module.average.values.items()}
        assert module.average.updates == steps
        return runner, recorder, module.editor.state_dict() | averages

    data.setup()
    assert len(data.train_dataloader()) == 6
    _, unbroken, weights = run(13)
    runner, first, _ = run(stop)
    runner.save_checkpoint(tmp_path / "stopped.ckpt")
    _, second, resumed = run(13, str(tmp_path / "stopped.ckpt"))
    assert first.batches + second.batches == unbroken.batches
    assert first.losses + second.losses == unbroken.losses
    assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.items())


def test_a_checkpoint_of_another_model_is_rejected_before_training(tiny_config, data, tmp_path):
    run = trainer(tmp_path)
    run.fit(LitKiwi(tiny_config), data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    wider = tiny_config.replace(dit=tiny_config.dit.replace(ffn_dim=64))
    with pytest.raises(CheckpointError, match=r"ffn.*\(96", check=lambda error: error.code == "mismatched-weights"):
        trainer(tmp_path).fit(LitKiwi(wider), data, ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True)


def test_validation_logs_the_loss_and_those_with_swapped_and_without_source(tiny_config, data, tmp_path):
    run = trainer(tmp_path, limit_val_batches=1.0)
    (metrics,) = run.validate(LitKiwi(tiny_config), data, verbose=False)
    assert {"val/loss", "val/loss_swapped", "val/loss_blind", "val/loss_at_0.9"} <= metrics.keys()
    # An untrained model with zero-initialised injection ignores the source, and is worse than the blind predictor.
    assert metrics["val/loss"] == pytest.approx(metrics["val/loss_swapped"], rel=1e-5)
    assert metrics["val/loss"] > metrics["val/loss_blind"] > 0


def test_a_cache_is_rejected_by_autoencoders_and_by_editors_with_different_encoders(tiny_config, data, tmp_path):
    data.multiple = 4
    data.setup()
    cache = FeatureCache.create(tmp_path / "cache", EncoderFingerprints("vae"), "float16")
    keys = [key for dataset in data.datasets.values() for key in dataset.list_encoding_jobs(cache)]
    cache.write(dict.fromkeys(keys, LatentDistribution(torch.zeros(1), torch.zeros(1))))
    data.cache, data.datasets = str(tmp_path / "cache"), {}
    for module, code in (
        (LitVae(NewVae(z_dim=4, base_dim=4)), "cache-not-allowed"),
        (LitKiwi(tiny_config), "mismatched-cache"),
    ):
        for command in ("fit", "validate"):
            with pytest.raises(InputError, check=lambda error, code=code: error.code == code):
                getattr(trainer(tmp_path), command)(module, data)
    other = FeatureCache.create(tmp_path / "other", EncoderFingerprints(mllm="another"), "float16")
    keys = [
        job.features_key for dataset in data.datasets.values() for job in dataset.list_encoding_jobs(other).values()
    ]
    other.write(dict.fromkeys(keys, VisionFeatures(1, (1, 28, 28), torch.zeros(1))))
    data.cache, data.datasets = str(other.folder), {}
    with pytest.raises(InputError, match="MLLM", check=lambda error: error.code == "mismatched-cache"):
        trainer(tmp_path).fit(LitKiwi(tiny_config), data)


def test_a_dropped_source_is_grey_although_the_cache_has_its_latents(tiny_config, data):
    data.multiple = 4
    data.setup()
    module, batch = LitKiwi(tiny_config), collate([data.datasets["train"].decode(0)])
    assert module.get_source_latents(batch) is None
    x = module.encode_targets(batch).mode()
    batch.source_posterior = LatentDistribution(x, torch.zeros_like(x))
    assert torch.equal(module.get_source_latents(batch), x)
    batch.source_dropped = [0]
    grey = module.editor.vae.encode(torch.zeros(1, 3, *batch.size))
    assert torch.equal(module.get_source_latents(batch), grey)
    assert not torch.equal(grey, x)
    assert torch.equal(batch.source_posterior.mean, x)


def test_a_run_does_not_resume_with_a_different_configuration(tiny_config, data, tmp_path):
    run = trainer(tmp_path)
    run.fit(LitKiwi(tiny_config), data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    changes = {
        "model.optim.lr": {"optim": AdamW(lr=0.5)},
        "model.config.dit.num_heads": {"config": tiny_config.replace(dit=tiny_config.dit.replace(num_heads=1))},
        "model.dropout.source": {"dropout": ConditionDropout(source=0.5)},
        "model.train_parts": {"train_parts": ("dit", "source")},
        "model.targets": {"targets": "sample"},
    }
    for path, change in changes.items():
        with pytest.raises(CheckpointError, match=path, check=lambda error: error.code == "changed-settings"):
            trainer(tmp_path).fit(LitKiwi(**{"config": tiny_config} | change), data, ckpt_path=str(tmp_path / "x.ckpt"))
    with pytest.raises(CheckpointError, match="precision", check=lambda error: error.code == "changed-settings"):
        trainer(tmp_path, precision="bf16-mixed").fit(LitKiwi(tiny_config), data, ckpt_path=str(tmp_path / "x.ckpt"))


def test_a_checkpoint_of_the_previous_release_resumes(tiny_config, data, tmp_path):
    """Such a checkpoint has its settings under a different key, and the loss weighting under its former name."""
    run = trainer(tmp_path)
    run.fit(LitKiwi(tiny_config), data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    settings = checkpoint.pop("resume_config")
    assert settings.pop("model.loss_weighting.type") == "Uniform"
    del settings["trainer.precision"]
    checkpoint["choices"] = settings | {"model.emphasis.type": "Even"}
    torch.save(checkpoint, tmp_path / "x.ckpt")
    resumed = trainer(tmp_path, max_steps=5)
    resumed.fit(LitKiwi(tiny_config), data, ckpt_path=str(tmp_path / "x.ckpt"))
    assert resumed.global_step == 5
    other = LitKiwi(tiny_config, loss_weighting=ChangeWeighted())
    with pytest.raises(CheckpointError, match=r"model\.loss_weighting\.type"):
        trainer(tmp_path).fit(other, data, ckpt_path=str(tmp_path / "x.ckpt"))


def test_sources_are_swapped_in_every_form_that_a_batch_contains(tiny_config, data):
    data.multiple = 4
    data.setup()
    samples = [data.datasets["train"].decode(index) for index in (0, 1, 2)]
    module, plain = LitKiwi(tiny_config), collate(samples)
    swapped = module.swap_conditions(plain)
    for index, donor in enumerate((1, 2, 0)):
        assert (swapped.source_frames[index] == plain.source_frames[donor]).all()
        assert torch.equal(swapped.source_BCFHW[index], plain.source_BCFHW[donor])
    assert swapped.source_posterior is None
    assert torch.equal(swapped.target_BCFHW, plain.target_BCFHW)
    features = [VisionFeatures(2, (4, 28, 28), torch.full((1, 2, 8), float(index))) for index in range(3)]
    posterior = LatentDistribution(torch.arange(3.0).view(3, 1, 1, 1, 1), torch.arange(3.0).view(3, 1, 1, 1, 1) + 10)
    no_pixels = plain.source_BCFHW[:, :, :0]
    cached = replace(plain, source_frames=features, source_posterior=posterior, source_BCFHW=no_pixels)
    swapped = LitKiwi(tiny_config).swap_conditions(cached)
    assert [item.features_LNM[0, 0, 0].item() for item in swapped.source_frames] == [1, 2, 0]
    assert swapped.source_posterior.mean.flatten().tolist() == [1, 2, 0]
    assert swapped.source_posterior.std.flatten().tolist() == [11, 12, 10]
    # Equal clips are not swapped with each other.
    equal_posterior = LatentDistribution(torch.zeros(3, 1, 1, 1, 1), torch.zeros(3, 1, 1, 1, 1))
    assert LitKiwi(tiny_config).swap_conditions(replace(cached, source_posterior=equal_posterior)) is None
