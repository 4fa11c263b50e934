"""A module outside kiwi that cannot be imported is named with the place and the reason."""

import pytest

from kiwi.errors import InputError
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
