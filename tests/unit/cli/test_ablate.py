"""Options of `kiwi ablate`: their values are checked before a study is read."""

from pathlib import Path

import pytest

from kiwi.__main__ import main
from kiwi.ablation import AblateOptions
from kiwi.errors import InputError, SpecError


def cluster_options(*assignments):
    return AblateOptions(study=Path("study.yaml"), launcher="slurm", slurm=assignments).executor_options


def test_options_of_a_cluster_are_numbers_or_words():
    assignments = (
        "timeout_min=600", "slurm_partition=gpu", "slurm_time=1:30:00", "slurm_exclusive=True", "slurm_account=1e3",
        "slurm_comment=a=b",
    )  # fmt: skip
    assert cluster_options(*assignments) == {
        "timeout_min": 600, "slurm_partition": "gpu", "slurm_time": "1:30:00", "slurm_exclusive": True,
        "slurm_account": "1e3", "slurm_comment": "a=b",
    }  # fmt: skip


@pytest.mark.parametrize("assignment", ["gpu", "=gpu", "a b=gpu"])
def test_a_cluster_option_without_a_name_is_refused(assignment):
    with pytest.raises(InputError, match=assignment) as caught:
        cluster_options(assignment)
    assert caught.value.code == "invalid-assignment"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"jobs": 0}, "out-of-range"),
        ({"threads": 0}, "out-of-range"),
        ({"price": -1.0}, "out-of-range"),
        ({"price": float("inf")}, "out-of-range"),
        ({"seeds": (-1,)}, "invalid-seeds"),
        ({"seeds": (1, 1)}, "invalid-seeds"),
        ({"slurm": ("slurm_partition=gpu",)}, "conflicting-options"),
        ({"report": True, "dry_run": True}, "conflicting-options"),
    ],
)
def test_values_that_cannot_be_used_are_refused(options, code):
    with pytest.raises((InputError, SpecError)) as caught:
        AblateOptions(study=Path("study.yaml"), **options)
    assert caught.value.code == code


@pytest.mark.parametrize("other", ["--dry-run", "--report", "--no-estimate"])
def test_a_price_needs_an_estimate(other, capsys):
    assert main(["ablate", "study.yaml", "--price", "2", other]) == 2
    assert f"--price and {other}" in " ".join(capsys.readouterr().err.split())
