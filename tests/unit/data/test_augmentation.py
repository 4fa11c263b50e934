import numpy as np
import pytest
import torch

from kiwi.data.augmentation import ConditionDropout, drop_conditions
from kiwi.data.sample import EditSample, collate
from kiwi.encoded import LatentDistribution, TaskKind, VisionFeatures
from kiwi.errors import SpecError


def batch(count=2):
    rng = np.random.default_rng(0)

    def sample(name):
        frames, pictures = rng.integers(0, 100, (5, 8, 8, 3), np.uint8), rng.integers(0, 100, (1, 8, 8, 3), np.uint8)
        return EditSample(
            name, TaskKind.reference, "Make it snow.", (5, 8, 8), frames, frames, tuple(pictures), pictures
        )

    return collate([sample(str(i)) for i in range(count)])


def test_dropped_conditions_are_empty_and_the_others_are_kept():
    original = batch()
    dropped = drop_conditions(original, instruction=[True, False], source=[False, True], reference=[True, False])
    assert dropped.instructions == ["", "Make it snow."]
    assert (dropped.source_BCFHW[1] == 0).all()
    assert (dropped.source_frames[1] == 128).all()
    assert (dropped.references_BRCHW[0] == 1).all()
    assert (dropped.reference_images[0][0] == 255).all()
    assert torch.equal(dropped.source_BCFHW[0], original.source_BCFHW[0])
    assert torch.equal(dropped.references_BRCHW[1], original.references_BRCHW[1])
    assert torch.equal(dropped.target_BCFHW, original.target_BCFHW)
    assert original.source_BCFHW[1].min() < 0
    assert original.instructions == ["Make it snow."] * 2


def test_cached_conditions_are_dropped_too():
    """Empty images have the size that the vision tower encoded, so that there are as many visual tokens."""
    original = batch()
    source = VisionFeatures(2, (4, 56, 56), torch.zeros(1, 8, 4))
    reference = VisionFeatures(1, (1, 28, 56), torch.zeros(1, 2, 4))
    original.source_frames, original.reference_images = [source] * 2, [(reference,)] * 2
    original.source_BCFHW = torch.zeros(2, 3, 0, 8, 8)
    original.source_posterior = LatentDistribution(torch.ones(2, 4), torch.ones(2, 4))
    dropped = drop_conditions(original, instruction=[False] * 2, source=[False, True], reference=[True, False])
    assert dropped.source_dropped == [1]
    assert dropped.source_frames[0] is source
    assert dropped.source_frames[1].shape == (5, 8, 8, 3)
    assert (dropped.source_frames[1] == 128).all()
    assert dropped.reference_images[0][0].shape == (28, 56, 3)
    assert (dropped.reference_images[0][0] == 255).all()
    assert dropped.reference_images[1] == (reference,)
    assert dropped.source_posterior is original.source_posterior
    without_cache = drop_conditions(batch(), instruction=[False] * 2, source=[True] * 2, reference=[False] * 2)
    assert without_cache.source_dropped == []


def test_conditions_are_dropped_independently_with_their_probabilities_and_keyed():
    spec, original = ConditionDropout(instruction=0.5, source=0.2), batch(1)

    def find_dropped(step):
        dropped = spec.apply(original, 0, step)
        pixels = [(dropped.source_BCFHW == 0).all(), (dropped.references_BRCHW == 1).all()]
        return [dropped.instructions[0] == "", *map(bool, pixels)]

    is_dropped = np.array([find_dropped(step) for step in range(600)])
    instruction, source, reference = is_dropped.mean(0)
    assert instruction == pytest.approx(0.5, abs=0.06)
    assert source == pytest.approx(0.2, abs=0.05)
    assert reference == 0
    assert (is_dropped[:, 0] & is_dropped[:, 1]).mean() == pytest.approx(0.1, abs=0.04)
    again = [spec.apply(original, 0, step).instructions[0] == "" for step in range(600)]
    assert again == is_dropped[:, 0].tolist()
    assert [spec.apply(original, 1, step).instructions[0] == "" for step in range(600)] != again


def test_probabilities_outside_0_to_1_are_rejected():
    with pytest.raises(SpecError, check=lambda error: error.code == "out-of-range"):
        ConditionDropout(source=1.5)
