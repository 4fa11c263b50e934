import functools
import math

import lightning as L
import lpips
import numpy as np
import pytest
import torch

from kiwi.data.datamodule import EditData
from kiwi.data.sample import collate
from kiwi.data.sources import Manifest
from kiwi.errors import InputError
from kiwi.evaluation.fidelity import Lpips, compute_edit_metrics
from kiwi.models.sampling import Sampling
from kiwi.models.vae.wan import NewVae
from kiwi.training.averaging import Ema
from kiwi.training.callbacks.edit_quality import EditQuality
from kiwi.training.callbacks.previews import Previews, select_indices
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.modules.vae import LitVae
from kiwi.training.optim import AdamW


@pytest.fixture
def data(edit_folder):
    """Validation data: two videos with masks, and one of them with a reference and without a mask."""
    manifests = [Manifest(path="video.csv", max_frames=5), Manifest(path="reference.csv", max_frames=5)]
    return EditData(
        train=manifests, root=str(edit_folder), max_pixels=4096, multiple=8, batch_size=2, holdout=2, seed=1,
        num_workers=0,
    )  # fmt: skip


@pytest.fixture
def random_lpips(monkeypatch):
    """Give LPIPS a random backbone, so that nothing is downloaded."""
    monkeypatch.setattr(lpips, "LPIPS", functools.partial(lpips.LPIPS, pnet_rand=True))


def kiwi(config):
    return LitKiwi(config, optim=AdamW(lr=1e-2, warmup_steps=1), averaging=Ema(decay=0.5), sampling=Sampling(steps=2))


def trainer(folder, *callbacks, **options):
    options = {"max_steps": 2, "num_sanity_val_steps": 0, "check_val_every_n_epoch": None} | options
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", use_distributed_sampler=False, enable_model_summary=False,
        logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=list(callbacks), **options,
    )  # fmt: skip


def validated(folder, module, data, *callbacks):
    return trainer(folder, *callbacks).validate(module, data, verbose=False)[0]


def test_validation_logs_means_over_edits_and_over_unedited_sources_and_their_number(tiny_config, data, tmp_path):
    module = kiwi(tiny_config)
    metrics = validated(tmp_path, module, data, EditQuality())
    dataset = data.datasets["validation"]
    samples = [dataset.decode(index) for index in range(len(dataset))]
    masked = [sample.mask_FHW is not None for sample in samples]
    assert (metrics["val/edits"], metrics["val/edits_inside"], metrics["val/edits_outside"]) == (3, 2, 2)
    assert (len(masked), sum(masked)) == (3, 2)
    edits = [module.preview(collate([sample]), seed=0).clips["edit"] for sample in samples]
    for kind, clips in (("edit", edits), ("copy", [sample.source_FHWC for sample in samples])):
        rows = [compute_edit_metrics(c, s.target_FHWC, s.mask_FHW) for c, s in zip(clips, samples, strict=True)]
        for name in ("psnr", "ssim", "psnr_inside", "psnr_outside", "ssim_inside", "ssim_outside"):
            mean = np.mean([row[name] for row in rows if name in row])
            assert metrics[f"val/{kind}_{name}"] == pytest.approx(mean, rel=1e-5), (kind, name)
    # The unedited source differs from the target inside the mask, but outside only by compression.
    assert metrics["val/copy_psnr_outside"] > metrics["val/copy_psnr_inside"] + 15


def test_edits_use_the_averaged_weights(tiny_config, data, tmp_path):
    module = kiwi(tiny_config)
    trainer(tmp_path, limit_val_batches=0).fit(module, data)
    with module.averaged():
        average = {name: value.clone() for name, value in module.state_dict().items()}
    logged = validated(tmp_path, module, data, EditQuality())
    plain = LitKiwi(tiny_config, sampling=Sampling(steps=2))
    of_initial = validated(tmp_path, plain, data, EditQuality())
    plain.load_state_dict(module.state_dict())
    of_last = validated(tmp_path, plain, data, EditQuality())
    plain.load_state_dict(average)
    of_average = validated(tmp_path, plain, data, EditQuality())
    assert logged["val/edit_psnr"] == of_average["val/edit_psnr"]
    assert len({metrics["val/edit_psnr"] for metrics in (of_initial, of_last, logged)}) == 3


def test_fewer_items_are_taken_from_every_task(tiny_config, data, tmp_path):
    metrics = validated(tmp_path, kiwi(tiny_config), data, EditQuality(items=2))
    assert (metrics["val/edits"], metrics["val/edits_inside"]) == (2, 1)


def test_lpips_is_logged_if_selected(tiny_config, data, tmp_path, random_lpips):
    metrics = validated(tmp_path, kiwi(tiny_config), data, EditQuality(perceptual=Lpips()))
    names = {f"val/{kind}_lpips{side}" for kind in ("edit", "copy") for side in ("", "_inside", "_outside")}
    assert all(math.isfinite(metrics[name]) and metrics[name] > 0 for name in names)
    assert metrics["val/copy_lpips_inside"] > metrics["val/copy_lpips_outside"]


def test_frames_too_small_for_lpips_are_rejected_before_anything_runs(tiny_config, data, tmp_path, random_lpips):
    data.max_pixels = 1024
    with pytest.raises(InputError, match="32", check=lambda error: error.code == "frames-too-small"):
        validated(tmp_path, kiwi(tiny_config), data, EditQuality(perceptual=Lpips()))


def test_nothing_is_edited_if_items_is_none_or_in_sanity_checks_or_by_an_autoencoder(
    tiny_config, data, tmp_path, monkeypatch
):
    assert not any("edit" in name for name in validated(tmp_path, kiwi(tiny_config), data, EditQuality(items=None)))
    vae = LitVae(NewVae(z_dim=4, base_dim=4))
    assert not any("edit" in name for name in validated(tmp_path, vae, data, EditQuality()))
    monkeypatch.setattr(LitKiwi, "preview", None)
    trainer(tmp_path, EditQuality(), num_sanity_val_steps=2, max_steps=1).fit(kiwi(tiny_config), data)
    with pytest.raises(InputError, check=lambda error: error.code == "out-of-range"):
        EditQuality(items=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_of_previews_are_not_edited_again_at_the_same_step(tiny_config, data, tmp_path, monkeypatch, seed):
    edits, preview = [], LitKiwi.preview

    def counted(module, batch, seed):
        edits.append((module.global_step, batch.ids[0], seed))
        return preview(module, batch, seed)

    monkeypatch.setattr(LitKiwi, "preview", counted)
    callbacks = Previews(every_n_steps=1, items=2), EditQuality(items=2, seed=seed)
    trainer(tmp_path, *callbacks, val_check_interval=1).fit(kiwi(tiny_config), data)
    assert len(edits) == len(set(edits)) == 2 * 2 * (1 + seed)  # both steps; other noise needs other edits
    assert len(select_indices(data.datasets["validation"], 2)) == 2


def test_validation_does_not_change_the_trained_weights(tiny_config, data, tmp_path, random_lpips):
    class Watched(EditQuality):
        def on_validation_epoch_end(self, trainer, module):
            before = torch.random.get_rng_state()
            super().on_validation_epoch_end(trainer, module)
            assert torch.equal(torch.random.get_rng_state(), before)

    states = []
    for options in ({"val_check_interval": 1}, {"limit_val_batches": 0}):
        torch.manual_seed(0)
        module, run = kiwi(tiny_config), trainer(tmp_path, Watched(perceptual=Lpips()), max_steps=3, **options)
        run.fit(module, data)
        assert ("val/edit_lpips" in run.callback_metrics) == ("val_check_interval" in options)
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
