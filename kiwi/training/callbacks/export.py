"""The callback that writes the model folder of a run."""

import logging
from pathlib import Path
from typing import Any

import lightning as L

from kiwi.errors import InputError
from kiwi.media.files import make_folder, report_unwritable, require_replaceable, resolve_inside
from kiwi.training.modules.base import LitModule
from kiwi.training.trainer import EveryNSteps

log = logging.getLogger(__name__)

_RUN = Path("/RUN")  # stands for the run folder, which is not known when the callback is built

RESERVED_NAMES = (".", "checkpoints", "previews", "before_after", "config.yaml", "environment.json")
"""Files and folders that other parts of training write to the run folder; "." is the run folder itself."""


class ModelExport(L.Callback):
    """Writes the model folder that `kiwi edit` loads, at the end of training and at intervals.

    Args:
        folder: name of the model folder in the run folder.
        every_n_steps: optimizer steps between exports; 0 exports at the end only.
        self_contained: copy VAE and MLLM into the folder, so that it can be moved; otherwise store their paths.

    Raises:
        InputError: the folder is not a path inside the run folder.
    """

    def __init__(self, folder: str = "model", every_n_steps: int = 0, self_contained: bool = True) -> None:
        name = resolve_inside(_RUN, folder, "--export.folder").relative_to(_RUN).as_posix()
        if name in RESERVED_NAMES:
            expected = "the name of a folder that the run does not use otherwise, such as model"
            raise InputError("--export.folder cannot be used", code="invalid-path", got=repr(folder), expected=expected)
        self.folder, self.interval, self.self_contained = folder, EveryNSteps(every_n_steps), self_contained

    def require_replaceable_folder(self, root: Path, module: LitModule) -> None:
        """Raise an InputError if the model folder contains files that exports do not write; called before training."""
        folder = root / self.folder
        with report_unwritable(folder):
            exists = folder.exists()  # raises if the name is too long for the file system
        if exists:
            require_replaceable(folder, module.list_unexpected_files)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if self.interval.due(trainer.global_step):
            self._export(trainer, module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Export the result, even if the run was killed after its last step and is now resumed."""
        if folder := self._export(trainer, module):
            log.info("model folder: %s", folder)

    @L.pytorch.utilities.rank_zero_only
    def _export(self, trainer: L.Trainer, module: L.LightningModule) -> Path:
        assert isinstance(module, LitModule)
        folder = Path(trainer.default_root_dir) / self.folder
        make_folder(folder.parent)
        with module.averaged():
            module.export(folder, self_contained=self.self_contained)
        return folder
