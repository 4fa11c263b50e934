"""Options of `kiwi ablate` that no study needs to be run for."""

import pytest

from kiwi.__main__ import main
from kiwi.cli.ablate import executor_options
from kiwi.errors import InputError


def test_options_of_a_cluster_are_numbers_or_words():
    words = [
        "timeout_min=600",
        "slurm_partition=gpu",
        "slurm_time=1:30:00",
        "slurm_exclusive=True",
        "slurm_account=1e3",
        "slurm_comment=a=b",
    ]
    assert executor_options(words) == {
        "timeout_min": 600, "slurm_partition": "gpu", "slurm_time": "1:30:00", "slurm_exclusive": True,
        "slurm_account": "1e3", "slurm_comment": "a=b",
    }  # fmt: skip


@pytest.mark.parametrize("word", ["gpu", "=gpu", "a b=gpu"])
def test_what_names_no_option(word):
    with pytest.raises(InputError, match="NAME=VALUE"):
        executor_options([word])


@pytest.mark.parametrize("other", ["--dry-run", "--report", "--no-estimate"])
def test_a_price_needs_an_estimate(other, capsys):
    assert main(["ablate", "study.yaml", "--price", "2", other]) == 2
    assert f"--price and {other}" in " ".join(capsys.readouterr().err.split())
