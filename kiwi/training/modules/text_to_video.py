"""LitBase: the text-to-video model whose DiT editors start from, trained on targets and their captions (B samples)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kiwi.checkpoints.folder_config import read_json_or_empty
from kiwi.data.sample import EditBatch, to_pixels
from kiwi.errors import InputError
from kiwi.media.files import atomic_folder
from kiwi.models.connectors import Context
from kiwi.models.sampling import Sampling, denoise, eval_mode, make_noise
from kiwi.models.text_to_video import MODEL_KIND, TextToVideo, TextToVideoConfig
from kiwi.spec import to_dict
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.modules.base import Preview
from kiwi.training.modules.flow import LitFlow
from kiwi.training.optim import AdamW, OptimSpec


class LitBase(LitFlow):
    """Trains a Wan text-to-video model of any size from scratch, including its text encoder.

    The data are edits with captions: sandbox items, or manifests with a column `caption`. Their sources and references
    are not used. `WanBase(path=folder)` loads the DiT of the exported folder into an editor.

    Validation logs `val/loss`, `val/loss_swapped` (with another sample's caption) and `val/loss_blind`.

    Args:
        config: architecture of the model.
        optim: optimizer and schedule.
        averaging: weight averaging; validation, previews and exports use the average.
        sampling: sampling options of previews.
        targets: use the mode of the VAE's posterior as the target latents, or sample from it at every step.
        seed: seed of the initial weights and of all randomness in training.
    """

    def __init__(
        self,
        config: TextToVideoConfig,
        optim: OptimSpec = AdamW(),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        sampling: Sampling = Sampling(steps=20),  # noqa: B008  (frozen)
        targets: Literal["mode", "sample"] = "mode",
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, seed, targets)
        self.model = TextToVideo(config, seed=seed)
        self.sampling = sampling

    @property
    def network(self) -> TextToVideo:
        return self.model

    def encode_conditions(self, batch: EditBatch) -> Context:
        """Encode a batch's captions.

        Raises:
            InputError: a sample has no caption.
        """
        if missing := [name for name, caption in zip(batch.ids, batch.captions, strict=True) if not caption]:
            expected = "sandbox items, or a manifest with a column `caption`"
            raise InputError(f"the sample {missing[0]} has no caption", code="missing-caption", expected=expected)
        return self.model.encode(batch.captions)

    def swap_conditions(self, batch: EditBatch) -> EditBatch | None:
        """Replace every caption by that of the next sample; None if two successive samples have the same caption."""
        captions = batch.captions[1:] + batch.captions[:1]
        is_any_equal = any(caption == swapped for caption, swapped in zip(batch.captions, captions, strict=True))
        return None if is_any_equal else replace(batch, captions=captions)

    # --- for commands and callbacks -------------------------------------------------------------------

    def resume_config(self) -> dict[str, Any]:
        return {"config": to_dict(self.model.config), "targets": self.targets}

    def is_saved(self, name: str) -> bool:
        return not name.startswith("model.vae.")

    def export(self, folder: Path, *, self_contained: bool) -> None:
        with atomic_folder(folder, self.list_unexpected_files) as new:
            self.model.save(new)

    def list_unexpected_files(self, folder: Path) -> list[str]:
        names = sorted(item.name for item in folder.iterdir())
        if read_json_or_empty(folder / "config.json").get("kind") != MODEL_KIND:
            return names
        return [name for name in names if name not in ("config.json", "model.safetensors", "text_encoder")]

    def preview(self, batch: EditBatch, seed: int) -> Preview:
        """Generate a clip from the sample's caption; clips are the generated one and the target."""
        with eval_mode(self):
            latents = self.vae.encode(batch.target_BCFHW)
            noise = make_noise(tuple(latents.shape), seed, batch.ids, self.device)
            generated = denoise(self.model, self.model.encode(batch.captions), noise, self.sampling)
            clip = to_pixels(self.vae.decode(generated)[0])
        return Preview({"generated": clip, "a clip": to_pixels(batch.target_BCFHW[0])}, batch.captions[0])
