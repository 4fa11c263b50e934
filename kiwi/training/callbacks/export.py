"""The model folder that a run leaves behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L

from kiwi.media.files import require_replaceable
from kiwi.training.callbacks.previews import _data
from kiwi.training.modules.base import LitModule, made_a_step

log = logging.getLogger(__name__)


class ModelExport(L.Callback):
    """Writes the model folder that `kiwi edit` reads, at the end of training and after each checkpoint interval.

    Args:
        folder: name of the model folder in the run's folder.
        every_n_steps: optimizer steps between exports; 0 exports at the end only.
        self_contained: copy VAE and MLLM into the folder, so that it can be moved; else it names their paths.
    """

    def __init__(self, folder: str = "model", every_n_steps: int = 0, self_contained: bool = True) -> None:
        self.folder, self.every_n_steps, self.self_contained = folder, every_n_steps, self_contained

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """Export at the interval."""
        if self.every_n_steps and made_a_step(trainer, self) and trainer.global_step % self.every_n_steps == 0:
            self._export(trainer, module)

    def check(self, root: Path, module: LitModule) -> None:
        """Refuse, before any work, a run's folder with other things in the model's place: the export would, at the end.

        Raises:
            InputError: naming the first of them.
        """
        if (folder := root / self.folder).exists():
            require_replaceable(folder, module.foreign)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Export what was learned; by a run that was killed after its last step too, when it is resumed."""
        if folder := self._export(trainer, module):
            log.info("model folder: %s", folder)

    @L.pytorch.utilities.rank_zero_only
    def _export(self, trainer: L.Trainer, module: L.LightningModule) -> Path:
        assert isinstance(module, LitModule)
        frames = max(bucket.frames for bucket in _data(trainer).sets["train"].buckets)
        folder = Path(trainer.default_root_dir) / self.folder
        with module.averaged():
            module.export(folder, frames, self_contained=self.self_contained)
        return folder
