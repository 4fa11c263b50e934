"""Settings of a model folder, also under their former names, and noise that does not depend on the batch."""

import logging

import pytest
import torch

from kiwi.errors import SpecError
from kiwi.models.sampling import EditingDefaults, Sampling, make_noise
from kiwi.spec import from_dict, to_dict


def test_the_former_name_of_the_domain_is_read_with_a_warning(caplog):
    old = {"max_pixels": 1024, "max_frames": 5, "sampling": {"steps": 8}, "world": "sandbox"}
    with caplog.at_level(logging.WARNING):
        defaults = from_dict(EditingDefaults, old)
    assert (defaults.domain, defaults.max_pixels, defaults.sampling.steps) == ("sandbox", 1024, 8)
    assert "EditingDefaults.domain" in caplog.text
    assert to_dict(defaults)["domain"] == "sandbox"


@pytest.mark.parametrize("fields", [{"steps": 0}, {"sigma_min": 1.0}, {"sigma_min": -0.1}])
def test_sampling_settings_out_of_range_are_rejected(fields):
    with pytest.raises(SpecError, check=lambda error: error.code == "out-of-range"):
        Sampling(**fields)


def test_a_samples_noise_depends_on_seed_and_id_but_not_on_the_batch():
    shape = (2, 4, 1, 2, 2)
    batch = make_noise(shape, 0, ["a", "b"], "cpu")
    assert torch.equal(batch[1], make_noise((1, *shape[1:]), 0, ["b"], "cpu")[0])
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(batch, make_noise(shape, 1, ["a", "b"], "cpu"))
