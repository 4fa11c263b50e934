"""A module outside kiwi that cannot be imported is named with the place and the reason."""

import sys
import traceback

import pytest

from kiwi.errors import InputError
from kiwi.spec import Spec
from kiwi.training.lightning_cli import ParseOnlyCLI, run_cli


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("x = 1\ndef f(:\n", "broken-module", "SyntaxError: "),
        ("x = 1\nraise RuntimeError('boom at import')\n", "broken-module", "RuntimeError: boom at import"),
        ("x = 1\nimport a_module_that_is_not_there\n", "broken-module", "ModuleNotFoundError: No module named 'a_mod"),
        (None, "missing-module", "No module named 'users_{code}"),
    ],
    ids=["syntax", "exception", "missing import", "missing"],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(tmp_path, monkeypatch, text, code, reason, request):
    name = "users_" + request.node.callspec.id.replace(" ", "_")
    monkeypatch.syspath_prepend(tmp_path)
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(InputError, match=name, check=lambda error: error.code == code) as caught:
        run_cli(["fit", "--config", "experiments/first_light/editor.yaml", f"--model.config.source={name}.Gated"],
                ParseOnlyCLI)  # fmt: skip
    assert reason.format(code="missing") in caught.value.got
    fix = "PYTHONPATH" if text is None else f"line 2 of {tmp_path / name}.py"
    assert fix in caught.value.fix


@pytest.mark.parametrize("raised", ["ValueError('users: no')", "TypeError('users: no')", "RuntimeError('users: no')"])
def test_an_error_in_the_build_of_a_users_spec_is_raised_itself_with_its_place(tmp_path, monkeypatch, raised):
    (tmp_path / "users_vae.py").write_text(
        "from dataclasses import dataclass\nfrom kiwi.models.vae.wan import VaeSpec\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass UsersVae(VaeSpec):\n"
        f"    def build(self):\n        raise {raised}\n"
    )
    (tmp_path / "e.yaml").write_text(
        f"trainer: {{accelerator: cpu, default_root_dir: {tmp_path / 'run'}}}\nmodel: {{type: LitVae}}\n"
        "data: {train: [{type: Manifest, path: a.csv}]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_vae", raising=False)
    monkeypatch.setattr(Spec, "_registry", dict(Spec._registry))
    with pytest.raises(Exception, match=r"^users: no$") as caught:
        run_cli(["fit", "--config", str(tmp_path / "e.yaml"), "--model.vae=users_vae.UsersVae"])
    assert type(caught.value).__name__ == raised.partition("(")[0]
    assert "jsonargparse" not in "".join(traceback.format_exception(caught.value)).rpartition("users_vae.py")[2]
    assert not (tmp_path / "run").exists()
