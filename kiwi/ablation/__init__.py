"""Ablation studies: train variants of an editor with several seeds, evaluate them and compare each with the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiwi.ablation.options import AblateOptions

if TYPE_CHECKING:
    from kiwi.ablation.report import StudyReport

__all__ = ["AblateOptions", "run_study"]


def run_study(options: AblateOptions) -> StudyReport:
    """Run a study and analyse its results (`python -m kiwi ablate`); finished runs are not repeated.

    Raises:
        KiwiError: the study, an option or the output folder is invalid, and nothing was run. A run that fails does not
            raise an error; the report lists it.
    """
    from kiwi.ablation.sweep import run_sweep  # imports torch, which options and --help do not need

    return run_sweep(options)
