"""KiwiCLI: Lightning's command line over our modules and EditData.

Every field of the model's specs, of the data, of the trainer and of the standard callbacks is an option:
`--model.config.source=NoSource`, `--model.optim.lr 1e-4`, `--trainer.max_steps 100`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, set_parsing_settings
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kiwi.data.datamodule import EditData
from kiwi.environment import environment
from kiwi.errors import InputError, KiwiError
from kiwi.media.files import write_json, write_text
from kiwi.spec import abstract_specs
from kiwi.training.callbacks.edit_quality import EditQuality
from kiwi.training.callbacks.export import ModelExport
from kiwi.training.callbacks.previews import Previews
from kiwi.training.callbacks.run_log import RunLog
from kiwi.training.checkpointing import (
    AtomicCheckpointIO,
    checkpoint_to_resume,
    list_checkpoints,
    remove_unfinished,
    require_checkpoint,
)
from kiwi.training.cli_arguments import explain_parse_error, translate_argv_for_jsonargparse
from kiwi.training.modules.base import LitModule
from kiwi.training.trainer import Trainer

log = logging.getLogger(__name__)


class KiwiCLI(LightningCLI):
    """LightningCLI with kiwi's standard callbacks, a run folder that is never overwritten, and short errors."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only two of the trainer's subcommands: each takes a third of a second to set up."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Standard callbacks as option groups, defaults, and options that follow from others."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ModelExport, "export")
        parser.add_lightning_class_args(Previews, "previews")
        parser.add_lightning_class_args(EditQuality, "quality")
        parser.add_lightning_class_args(RunLog, "log")
        parser.set_defaults(
            {
                "checkpoint.save_last": "link",
                "checkpoint.enable_version_counter": False,  # after a kill it would rename `last`
                "checkpoint.save_top_k": 1,
                "checkpoint.every_n_train_steps": 500,
                "checkpoint.filename": "step{step:06d}",
                "checkpoint.auto_insert_metric_name": False,
                "trainer.default_root_dir": "runs/fit",
                "trainer.check_val_every_n_epoch": None,
                "trainer.val_check_interval": 200,
                "trainer.num_sanity_val_steps": 0,
            }
        )
        parser.link_arguments("model.size_multiple", "data.multiple", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Find and check the checkpoint before anything else. Lightning would read options from it; ours have none."""
        config = self.config[self.config["subcommand"]]
        folder = Path(config.trainer.default_root_dir) / "checkpoints"
        if config.get("ckpt_path") == "last":
            newest = checkpoint_to_resume(folder)
            config.ckpt_path = None if newest is None else str(newest)
            log.info("resuming from %s" if newest else "no checkpoint in %s yet: starting a new run", newest or folder)
        elif config.get("ckpt_path") is not None:
            require_checkpoint(Path(config.ckpt_path))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Log to the run's folder itself, and keep our own sampler, which Lightning would replace."""
        root = Path(self._get(self.config_init, "trainer.default_root_dir"))
        checkpoint = self._get(self.config_init, "checkpoint")
        checkpoint.dirpath = checkpoint.dirpath or str(root / "checkpoints")
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif self._get(self.config_init, "trainer.logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(root, name="", version="")
        kwargs["use_distributed_sampler"] = False
        kwargs["plugins"] = [*(self._get(self.config_init, "trainer.plugins") or []), AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.loggers:
            trainer.callbacks.append(LearningRateMonitor("step"))
        if isinstance(trainer.strategy, DDPStrategy):
            # A batch of one task kind leaves the query tables of the others without gradients.
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        return trainer

    def before_fit(self) -> None:
        """Refuse a folder that holds another run, and read all data, before anything is written."""
        root, resumed = Path(self.trainer.default_root_dir), self._get(self.config, "ckpt_path")
        # Lightning does not start training from a checkpoint that already has all the steps.
        self.is_started = resumed is None
        self.trainer.callbacks.insert(
            0, LambdaCallback(on_train_start=lambda trainer, module: self._write_run_files(root))
        )
        if not self.trainer.is_global_zero:
            return
        if list_checkpoints(root / "checkpoints") and (
            resumed is None or root.resolve() not in Path(resumed).resolve().parents
        ):
            fix = "choose another --trainer.default_root_dir, or resume the run with --ckpt_path last"
            raise InputError(f"{root} already holds a run", code="occupied-folder", fix=fix)
        for callback in self.trainer.callbacks:
            if isinstance(callback, ModelExport):
                callback.require_replaceable_folder(root, self.model)
        remove_unfinished(root / "checkpoints")
        self.datamodule.setup()

    def _write_run_files(self, root: Path) -> None:
        """Write the run's configuration, after its checkpoint was accepted: a refused run changes nothing."""
        self.is_started = True
        if not self.trainer.is_global_zero:
            return
        root.mkdir(parents=True, exist_ok=True)
        write_text(root / "config.yaml", self.configuration())
        write_json(root / "environment.json", environment())

    def configuration(self) -> str:
        """The complete configuration of a run as YAML."""
        text: str = self._parser("fit").dump(self.config["fit"], skip_none=False)
        return text

    def after_fit(self) -> None:
        """Save a checkpoint of the last step, whatever the interval; warn if there was nothing to train."""
        if not self.is_started and self.trainer.is_global_zero:
            log.warning(
                "nothing to do: the run is already at step %d (trainer.max_steps %d, max_epochs %d); "
                "increase max_steps or max_epochs to continue training",
                self.trainer.global_step, self.trainer.max_steps, self.trainer.max_epochs or -1,
            )  # fmt: skip
        if self.is_started and self.trainer.checkpoint_callback.save_last:
            self.trainer.save_checkpoint(Path(self.trainer.checkpoint_callback.dirpath) / "last.ckpt")

    def before_validate(self) -> None:
        """Refuse to measure initial weights by mistake."""
        if self._get(self.config, "ckpt_path") is None and not self.model.is_pretrained:
            fix = "give --ckpt_path last, or --ckpt_path RUN/checkpoints/last.ckpt"
            raise InputError("validate needs a checkpoint", code="missing-checkpoint", fix=fix)


class ParseOnlyCLI(KiwiCLI):
    """Parses a command line of `fit` and builds nothing."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": LightningCLI.subcommands()["fit"]}

    def _parse_ckpt_path(self) -> None: ...

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def run_cli(argv: Sequence[str], kind: type[KiwiCLI] = KiwiCLI) -> KiwiCLI:
    """Parse a command line, and run it unless `kind` is `ParseOnlyCLI`.

    Raises:
        KiwiError: options that cannot be used, with the choices for unknown names.
    """
    _silence_library_warnings()
    set_parsing_settings(subclasses_enabled=[*abstract_specs()])
    quiet = {"exit_on_error": False}  # errors are raised, so that they can be explained
    try:
        return kind(
            LitModule,
            EditData,
            trainer_class=Trainer,
            subclass_mode_model=True,
            args=translate_argv_for_jsonargparse(argv),
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"prog": "python -m kiwi", **quiet, **dict.fromkeys(kind.subcommands(), quiet)},
        )
    except (ArgumentError, MisconfigurationException, ValueError) as error:
        # jsonargparse wraps what a constructor raises; the user should see the original error.
        if cause := _find_kiwi_error(error):
            raise cause from error
        if isinstance(error, ValueError):
            raise
        fix = "see `python -m kiwi fit --help`"
        raise InputError(explain_parse_error(str(error)), code="invalid-option", fix=fix) from error


def _find_kiwi_error(error: BaseException) -> KiwiError | None:
    """The KiwiError that led to an error, if there is one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KiwiError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _silence_library_warnings() -> None:
    """Silence advice of libraries that does not apply: frozen parts are in eval mode, and our sampler can resume."""
    for message in (
        ".*does not have many workers.*",
        ".*LightningCLI's args parameter.*",
        ".*smaller than the logging interval.*",
        ".*It is recommended to use `self.log.*",
        ".*module\\(s\\) in eval mode.*",
        ".*your dataloader is not resumable.*",
        ".*treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
