"""Every spec of the package follows the contract of kiwi.spec."""

import dataclasses
import importlib
import inspect
import json
import pkgutil

import pytest

import kiwi
from kiwi.errors import InputError
from kiwi.options import Options
from kiwi.spec import Spec, from_dict, to_dict


@pytest.fixture(scope="module")
def specs():
    for module in pkgutil.walk_packages(kiwi.__path__, "kiwi."):
        if module.name != "kiwi.__main__":
            importlib.import_module(module.name)
    specs = [cls for cls in Spec._registry.values() if cls.__module__.startswith("kiwi.")]
    assert specs
    return specs


def test_specs_are_frozen_keyword_only_dataclasses(specs):
    for spec in specs:
        assert "__dataclass_params__" in vars(spec), f"{spec.__name__} is not decorated as a dataclass"
        assert spec.__dataclass_params__.frozen, f"{spec.__name__} is not frozen"
        assert all(field.kw_only for field in dataclasses.fields(spec)), f"{spec.__name__} takes positions"


def test_specs_round_trip_through_json(specs):
    count = 0
    for spec in specs:
        required = [p for p in inspect.signature(spec).parameters.values() if p.default is p.empty]
        if required or spec.__subclasses__():
            continue
        try:
            default = spec()
        except InputError:  # options that have no valid default
            continue
        assert from_dict(spec, json.loads(json.dumps(to_dict(default)))) == default, spec.__name__
        count += 1
    assert count > 0


def test_options_with_checks_of_their_own_keep_those_of_their_base(specs):
    own = [vars(cls)["__post_init__"] for cls in specs if issubclass(cls, Options) and "__post_init__" in vars(cls)]
    assert len(own) > 5
    for check in own:
        if check.__qualname__ != "Options.__post_init__":
            assert "super().__post_init__()" in inspect.getsource(check), check.__qualname__
