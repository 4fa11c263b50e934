"""Agreement of raters, compared with published examples."""

from math import isnan, nan

import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.statistics.agreement import krippendorff_alpha, spearman, weighted_kappa

_ = nan
# Krippendorff, Computing Krippendorff's alpha-reliability (2011), example C: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_matches_the_published_example(level, alpha):
    assert krippendorff_alpha(OBSERVERS, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_chance_and_of_perfect_agreement():
    rng = np.random.default_rng(0)
    rater = rng.integers(1, 6, 2000).astype(float)
    assert krippendorff_alpha([rater, rater]) == 1
    assert abs(krippendorff_alpha([rater, rng.permutation(rater)])) < 0.05
    assert isnan(krippendorff_alpha([[1, 2], [nan, nan]]))
    assert isnan(krippendorff_alpha([[3, 3], [3, 3]]))


def test_kappa_matches_its_definition_by_counts():
    a, b = [1, 2, 3, 4, 5, 3, 2, 1], [1, 3, 3, 4, 4, 2, 2, 2]
    counts = np.zeros((5, 5))
    for x, y in zip(a, b, strict=True):
        counts[x - 1, y - 1] += 1 / len(a)
    weights = np.subtract.outer(np.arange(5), np.arange(5)) ** 2
    chance = np.outer(counts.sum(1), counts.sum(0))
    assert weighted_kappa(a, b) == pytest.approx(1 - (weights * counts).sum() / (weights * chance).sum())
    assert weighted_kappa([*a, nan], [*b, 3]) == weighted_kappa(a, b)
    assert weighted_kappa(a, a) == 1
    assert isnan(weighted_kappa([2, 2], [2, 2]))


def test_spearman_depends_on_ranks_only():
    assert spearman([1, 2, 3, 5], [1, 2.5, 2.6, 9]) == pytest.approx(1)
    assert spearman([1, 2, 3, nan], [3, 2, 1, 7]) == pytest.approx(-1)
    assert isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_raters_of_different_items_and_unknown_levels_are_rejected():
    with pytest.raises(InputError, check=lambda error: error.code == "mismatched-lengths"):
        krippendorff_alpha([[1, 2], [1]])
    with pytest.raises(InputError, check=lambda error: error.code == "unknown-choice"):
        krippendorff_alpha(OBSERVERS, "ratio")
