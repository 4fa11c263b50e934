import pytest
import torch

from kiwi.errors import InputError
from kiwi.models.vae import NewVae
from kiwi.training.pretraining import LitVae


def test_an_exported_vae_replaces_the_last_one_and_nothing_else(tmp_path, monkeypatch):
    module = LitVae(NewVae(z_dim=4, base_dim=4))
    monkeypatch.setattr(module, "_latent_statistics", lambda: (torch.zeros(4), torch.ones(4)))
    for _ in range(2):
        module.export(tmp_path / "vae", 5, self_contained=True)
    assert (tmp_path / "vae/diffusion_pytorch_model.safetensors").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/config.json").write_text("{}")
    with pytest.raises(InputError, match="holds other things"):
        module.export(tmp_path / "notes", 5, self_contained=True)
    (tmp_path / "vae/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"Got: notes\.txt"):
        module.export(tmp_path / "vae", 5, self_contained=True)
    assert (tmp_path / "vae/notes.txt").read_text() == "mine"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["notes", "vae"]
