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
from kiwi.spec import families
from kiwi.training.callbacks.edit_quality import EditQuality
from kiwi.training.callbacks.export import ModelExport
from kiwi.training.callbacks.previews import Previews
from kiwi.training.callbacks.run_log import RunLog
from kiwi.training.checkpointing import (
    AtomicCheckpointIO,
    checkpoints,
    newest_to_resume,
    remove_halves,
    require_checkpoint,
)
from kiwi.training.cli_arguments import explain, for_jsonargparse
from kiwi.training.modules.base import LitModule
from kiwi.training.trainer import Trainer

log = logging.getLogger(__name__)


class KiwiCLI(LightningCLI):
    """LightningCLI with kiwi's standard callbacks, a run folder that is never written over, and short errors."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What kiwi offers of the trainer: each takes a third of a second to prepare."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Standard callbacks as option groups, and what the data takes from the model."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ModelExport, "export")
        parser.add_lightning_class_args(Previews, "previews")
        parser.add_lightning_class_args(EditQuality, "quality")
        parser.add_lightning_class_args(RunLog, "log")
        parser.set_defaults(
            {
                "checkpoint.save_last": "link",
                "checkpoint.enable_version_counter": False,  # after a kill it would name `last` anew
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
        parser.link_arguments("data.max_pixels", "model.init_args.max_pixels", apply_on="parse")

    def _parse_ckpt_path(self) -> None:
        """Look at the checkpoint first of all; Lightning would take options from it, and ours hold none."""
        config = self.config[self.config["subcommand"]]
        folder = Path(config.trainer.default_root_dir) / "checkpoints"
        if config.get("ckpt_path") == "last":
            found = newest_to_resume(folder)
            config.ckpt_path = None if found is None else str(found)
            log.info("going on from %s" if found else "no checkpoint in %s yet: starting anew", found or folder)
        elif config.get("ckpt_path") is not None:
            require_checkpoint(Path(config.ckpt_path))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Log to the run's folder itself; the sampler is ours, so Lightning must not put its own in."""
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
        """Refuse a folder that holds another run; read all data; then write what this run is."""
        root, resumed = Path(self.trainer.default_root_dir), self._get(self.config, "ckpt_path")
        # Lightning asks for nothing once a checkpoint has all the steps that are wanted.
        self.began = resumed is None
        self.trainer.callbacks.insert(0, LambdaCallback(on_train_start=lambda trainer, module: self._begin(root)))
        if not self.trainer.is_global_zero:
            return
        if checkpoints(root / "checkpoints") and (
            resumed is None or root.resolve() not in Path(resumed).resolve().parents
        ):
            raise InputError(
                f"{root} already holds a run",
                fix="choose another --trainer.default_root_dir, or go on: --ckpt_path last",
            )
        for callback in self.trainer.callbacks:
            if isinstance(callback, ModelExport):
                callback.check(root, self.model)
        remove_halves(root / "checkpoints")
        self.datamodule.setup()

    def _begin(self, root: Path) -> None:
        """Write what this run is, once its checkpoint, if there is one, was accepted: a refused run changes nothing."""
        self.began = True
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
        """Leave a checkpoint of the last step, wherever the interval stood; say so if no step was asked for."""
        if not self.began and self.trainer.is_global_zero:
            log.warning(
                "nothing to do: the run is already at step %d, and no more is asked for (trainer.max_steps %d, "
                "max_epochs %d); to go on with it ask for more",
                self.trainer.global_step, self.trainer.max_steps, self.trainer.max_epochs or -1,
            )  # fmt: skip
        if self.began and self.trainer.checkpoint_callback.save_last:
            self.trainer.save_checkpoint(Path(self.trainer.checkpoint_callback.dirpath) / "last.ckpt")

    def before_validate(self) -> None:
        """Measure what was trained, here or before, never initial weights by mistake."""
        if self._get(self.config, "ckpt_path") is None and not self.model.trained:
            raise InputError("validate needs a checkpoint", fix="--ckpt_path last, or RUN/checkpoints/last.ckpt")


class ConfigurationOnly(KiwiCLI):
    """Parses a command line of `fit` and builds nothing."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": LightningCLI.subcommands()["fit"]}

    def _parse_ckpt_path(self) -> None: ...

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def parse(argv: Sequence[str], kind: type[KiwiCLI] = KiwiCLI) -> KiwiCLI:
    """Parse a command line, and run what it says unless `kind` only parses.

    Raises:
        KiwiError: what cannot be used, in one sentence with the choices that there are.
    """
    _quieten()
    set_parsing_settings(subclasses_enabled=[*families()])
    quiet = {"exit_on_error": False}  # errors come as exceptions, to be told in our words
    try:
        return kind(
            LitModule,
            EditData,
            trainer_class=Trainer,
            subclass_mode_model=True,
            args=for_jsonargparse(argv),
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"prog": "python -m kiwi", **quiet, **dict.fromkeys(kind.subcommands(), quiet)},
        )
    except ArgumentError as problem:
        raise _cause(problem) or InputError(explain(str(problem)), fix="see `fit --help`") from problem
    except MisconfigurationException as problem:
        raise InputError(explain(str(problem)), fix="see `fit --help`") from problem
    except ValueError as problem:
        # jsonargparse wraps what a constructor raises; the user should see what was meant.
        if (cause := _cause(problem)) is None:
            raise
        raise cause from problem


def _cause(problem: BaseException) -> KiwiError | None:
    """The KiwiError that an error came from, if one did."""
    seen: BaseException | None = problem
    while seen is not None and not isinstance(seen, KiwiError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _quieten() -> None:
    """Keep libraries' advice out of the way of results."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    for told in (
        ".*It is recommended to use `self.log.*",
        ".*module\\(s\\) in eval mode.*",
        ".*your dataloader is not resumable.*",
        ".*treespec, LeafSpec.*",
    ):
        # Frozen parts are meant to be in eval mode, and our sampler does resume.
        warnings.filterwarnings("ignore", message=told)
    for name in ("lightning.pytorch", "lightning.fabric", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
