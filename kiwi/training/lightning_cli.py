"""LightningCLI for kiwi's LightningModules and EditData.

Every field of the model's specs, the data, the trainer and the standard callbacks is an option:
`--model.config.source=NoSource`, `--model.optim.lr 1e-4`, `--trainer.max_steps 100`.
"""

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from kiwi.data.datamodule import EditData
from kiwi.environment import environment
from kiwi.errors import (
    CheckpointError,
    InputError,
    format_choices,
)
from kiwi.media.files import make_folder, write_json, write_text
from kiwi.media.run_dir import LOCK_FILE, exclusive_lock
from kiwi.reading import follow_links
from kiwi.spec import abstract_specs
from kiwi.training import checkpointing
from kiwi.training.callbacks.edit_quality import EditQuality
from kiwi.training.callbacks.export import ModelExport
from kiwi.training.callbacks.previews import Previews
from kiwi.training.callbacks.run_log import RunLog
from kiwi.training.cli_arguments import require_numbers, translate_argv_for_jsonargparse
from kiwi.training.cli_errors import raise_plain_error
from kiwi.training.modules.base import LitModule
from kiwi.training.trainer import Trainer

log = logging.getLogger(__name__)


_REJECTIONS = (ValueError, TypeError, AttributeError, ImportError, RuntimeError)
"""Types of errors with which Lightning and jsonargparse reject options, besides their own."""

_WRITING_HOOKS = ("on_train_batch_end", "on_validation_end", "on_train_end")
"""Hooks in which callbacks write to the run folder."""

TRUST = (
    "Callbacks, loggers, plugins and other classes of Lightning are imported by the `class_path` in the configuration, "
    "which can so run any code: trust a configuration file like a script. Model folders, studies, benchmarks and "
    "manifests name no code."
)


class _ArgumentParser(LightningArgumentParser):
    """Accepts no abbreviated options, and raises errors instead of printing the usage and exiting."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"allow_abbrev": False, "exit_on_error": False})


class KiwiCLI(LightningCLI):
    """LightningCLI with kiwi's standard callbacks, run folders that are never overwritten, and short error messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Run the command, which LightningCLI does in its constructor; `fit` locks the run folder meanwhile."""
        self._require_run_folder: Callable[[], None] = lambda: None  # only rank 0 of `fit` holds the lock
        with ExitStack() as self._locks:
            super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer only `fit` and `validate`: setting up a subcommand takes 0.3 s."""
        subcommands = LightningCLI.subcommands()
        return {name: subcommands[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the standard callbacks as option groups, defaults, and links between options."""
        parser.epilog = TRUST
        callbacks = {"export": ModelExport, "previews": Previews, "quality": EditQuality, "log": RunLog}
        for group, callback in {"checkpoint": ModelCheckpoint, **callbacks}.items():
            parser.add_lightning_class_args(callback, group)
        parser.set_defaults(
            {
                "checkpoint.save_last": "link",
                "checkpoint.enable_version_counter": False,  # otherwise a restarted run may write last-v1.ckpt
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; an error about an unknown option names the most similar one."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            parsers = self._subcommand_parsers.values()
            raise_plain_error(error, [option for p in parsers for option in p._option_string_actions])
        require_numbers(self.config[self.config["subcommand"]].as_dict())

    def _parse_ckpt_path(self) -> None:
        """Lock the run folder of `fit`, and find and check the checkpoint, before anything else.

        Lightning would read hyperparameters from it, but kiwi checkpoints contain none.
        """
        config = self.config[self.config["subcommand"]]
        folder = Path(config.trainer.default_root_dir) / "checkpoints"
        if self.config["subcommand"] == "fit" and rank_zero_only.rank == 0:
            self._require_run_folder = self._locks.enter_context(self._lock_run(folder.parent))
        if config.get("ckpt_path") == "last":
            path = checkpointing.checkpoint_to_resume(folder)
            if path is None and self.config["subcommand"] == "validate":
                fix = "give the run's --trainer.default_root_dir, or --ckpt_path RUN/checkpoints/last.ckpt"
                raise CheckpointError(f"there is no checkpoint in {folder}", code="missing-file", fix=fix)
            config.ckpt_path = None if path is None else str(path)
            log.info("resuming from %s" if path else "no checkpoint in %s yet: starting a new run", path or folder)
        elif config.get("ckpt_path") is not None:
            checkpointing.require_checkpoint(Path(config.ckpt_path))

    @contextmanager
    def _lock_run(self, root: Path) -> Iterator[Callable[[], None]]:
        """Lock a run folder against other processes; if nothing is written to a new one, it is removed at the end."""
        is_new, is_unused = not root.exists(), False
        try:
            with exclusive_lock(make_folder(root)) as require_folder:
                try:
                    yield require_folder
                finally:
                    with suppress(InputError):  # another process may have made the folder anew
                        require_folder()
                        is_unused = is_new and [path.name for path in root.iterdir()] == [LOCK_FILE]
        finally:
            if is_unused:
                root.rmdir()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Log directly into the run folder (no version subfolder), and keep kiwi's sampler."""
        root = Path(self._get(self.config_init, "trainer.default_root_dir"))
        checkpoint = self._get(self.config_init, "checkpoint")
        checkpoint.dirpath = checkpoint.dirpath or str(root / "checkpoints")
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif self._get(self.config_init, "trainer.logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(root, name="", version="")
        kwargs["use_distributed_sampler"] = False
        plugins = self._get(self.config_init, "trainer.plugins") or []
        kwargs["plugins"] = [
            *(plugins if isinstance(plugins, list) else [plugins]),
            checkpointing.AtomicCheckpointIO(),
        ]
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.loggers:
            trainer.callbacks.append(LearningRateMonitor("step"))
        if isinstance(trainer.strategy, DDPStrategy):
            # In a batch of one task kind, the query embeddings of the other kinds get no gradients.
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        return trainer

    def before_fit(self) -> None:
        """Raise an error if the folder holds another run, and set up all data, before anything is written."""
        root, checkpoint_path = Path(self.trainer.default_root_dir), self._get(self.config, "ckpt_path")
        # on_train_start is not called if the checkpoint has reached max_steps; is_started then stays False.
        self.is_started = checkpoint_path is None
        # Before any other callback writes: a folder that was deleted meanwhile would be made anew, without its log.
        check = {hook: lambda *_: self._require_run_folder() for hook in _WRITING_HOOKS}
        start = {"on_train_start": lambda *_: self._write_run_files(root)}
        self.trainer.callbacks.insert(0, LambdaCallback(**start, **check))
        if not self.trainer.is_global_zero:
            return
        is_same_run = checkpoint_path is not None and follow_links(root) in follow_links(checkpoint_path).parents
        if checkpointing.list_checkpoints(root / "checkpoints") and not is_same_run:
            fix = "choose another --trainer.default_root_dir, or resume the run with --ckpt_path last"
            raise InputError(f"{root} already holds a run", code="occupied-folder", fix=fix)
        for callback in self.trainer.callbacks:
            if isinstance(callback, ModelExport):
                callback.require_replaceable_folder(root, self.model)
        checkpointing.remove_unfinished(root / "checkpoints")
        self.datamodule.setup()

    def _write_run_files(self, root: Path) -> None:
        """Write config.yaml and environment.json after the checkpoint is loaded, so a failed start changes nothing."""
        self.trainer.require_equal_steps()
        self.is_started = True
        if not self.trainer.is_global_zero:
            return
        root.mkdir(parents=True, exist_ok=True)
        write_text(root / "config.yaml", self.dump_configuration())
        write_json(root / "environment.json", environment())

    def dump_configuration(self) -> str:
        """The complete configuration of a run as YAML."""
        text: str = self._parser("fit").dump(self.config["fit"], skip_none=False)
        return text

    def after_fit(self) -> None:
        """Save a checkpoint of the last step, whatever the interval; warn if there was nothing to train."""
        self._require_run_folder()
        is_changed = self.is_started or self.model.is_validation_due
        if not is_changed and self.trainer.is_global_zero:
            step, limits = self.trainer.global_step, (self.trainer.max_steps, self.trainer.max_epochs or -1)
            message = "nothing to do: the run is already at step %d (trainer.max_steps %d, max_epochs %d)"
            log.warning(message + "; increase these to continue training", step, *limits)
        checkpoint = self._get(self.config_init, "checkpoint")  # trainer.callbacks may contain others
        if is_changed and checkpoint.save_last:
            self.trainer.save_checkpoint(Path(checkpoint.dirpath) / "last.ckpt")

    def before_validate(self) -> None:
        """Raise an error if the weights would be untrained."""
        if self._get(self.config, "ckpt_path") is None and not self.model.is_pretrained:
            fix = "give --ckpt_path last, or --ckpt_path RUN/checkpoints/last.ckpt"
            raise InputError("validate needs a checkpoint", code="missing-option", fix=fix)


class ParseOnlyCLI(KiwiCLI):
    """Parses the options of `fit` without building or running anything."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": LightningCLI.subcommands()["fit"]}

    def _parse_ckpt_path(self) -> None: ...
    def _set_seed(self) -> None: ...
    def instantiate_classes(self) -> None: ...
    def _run_subcommand(self, subcommand: str) -> None: ...


class CheckingCLI(ParseOnlyCLI):
    """Also builds data, callbacks and trainer, which check their values, but not the model.

    The trainer is built for the CPU of this machine, because `fit` may run on another one.
    """

    def instantiate_classes(self) -> None:
        """Build everything except the model; only the names of accelerator and strategy are checked."""
        config = self.config.clone()
        trainer = config["fit"]["trainer"]
        for option, known in (
            ("accelerator", {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}),
            ("strategy", {"auto", *StrategyRegistry.available_strategies()}),
        ):
            if isinstance(name := trainer[option], str) and name.lower() not in known:
                problem, expected = f"there is no trainer.{option} {name!r}", format_choices(sorted(known), name)
                raise InputError(problem, code="unknown-choice", expected=expected)
        if re.fullmatch(r"auto|-1|[1-9]\d*|\[\d+(, \d+)*\]|\d+( ?, ?\d*)+", str(trainer["devices"])):
            trainer["devices"] = 1
        trainer["accelerator"], trainer["strategy"], trainer["precision"] = "cpu", "auto", None
        models = [(lambda model_class, *args, **kwargs: SimpleNamespace(size_multiple=1), LitModule, True)]
        self.config_init = self.parser.instantiate(config, instantiators=models)
        self.instantiate_trainer()


def run_cli(argv: Sequence[str], cli_class: type[KiwiCLI] = KiwiCLI) -> KiwiCLI:
    """Parse the arguments, and run the command unless `cli_class` is `ParseOnlyCLI`.

    Raises:
        KiwiError: the options are invalid (for an unknown name, the message lists the valid ones), or the run failed.
    """
    _silence_libraries()
    # Options of Lightning's callbacks may have enums as defaults, such as the interval of Timer.
    yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, option: dumper.represent_data(option.value))
    set_parsing_settings(subclasses_enabled=[*abstract_specs()])
    try:
        return cli_class(
            LitModule,
            EditData,
            trainer_class=Trainer,
            subclass_mode_model=True,
            args=translate_argv_for_jsonargparse(argv),
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=_ArgumentParser,
            parser_kwargs={"prog": "python -m kiwi"},
        )
    except (ArgumentError, MisconfigurationException, *_REJECTIONS) as error:
        raise_plain_error(error)


def _silence_libraries() -> None:
    """Silence warnings that do not apply: frozen parts are meant to be in eval mode, and kiwi's sampler can resume.

    The traceback of a thread is not printed either if the thread keeps its error, which TensorBoard's writer does: the
    main thread raises it at the next write.
    """
    print_traceback = threading.__excepthook__
    threading.excepthook = lambda args: (
        None if getattr(args.thread, "exception", None) is args.exc_value else print_traceback(args)
    )
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
