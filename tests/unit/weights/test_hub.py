import pytest

from kiwi.errors import CheckpointError
from kiwi.weights.hub import locate


@pytest.mark.parametrize("subfolder", ["../other", "a/../../other", "/etc", "..", "C:/x", "..\\other"])
def test_a_subfolder_may_not_leave_its_folder(tmp_path, subfolder):
    (tmp_path / "model").mkdir()
    (tmp_path / "other").mkdir()
    for path in (str(tmp_path / "model"), "owner/name"):
        with pytest.raises(CheckpointError, match="leaves"):
            locate(path, "VAE", "name one", subfolder=subfolder)


def test_a_subfolder_may_be_a_link(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/vae").symlink_to(tmp_path)
    assert locate(str(tmp_path / "model"), "VAE", "name one", subfolder="vae") == tmp_path / "model/vae"
