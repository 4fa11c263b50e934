"""Ablation studies: variants of an editor trained under several seeds, measured and compared in pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiwi.ablation.options import AblateOptions

if TYPE_CHECKING:
    from kiwi.ablation.report import StudyReport

__all__ = ["AblateOptions", "run_study"]


def run_study(options: AblateOptions) -> StudyReport:
    """Run a study, or what is left of it, and analyse its results: `python -m kiwi ablate`.

    Raises:
        KiwiError: a study, options or a folder that cannot be used; nothing was run. Failed runs are in the report.
    """
    from kiwi.ablation.sweep import run  # imports torch, which options and --help do not need

    return run(options)
