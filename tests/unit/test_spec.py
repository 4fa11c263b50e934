"""Specs: conversion to plain data and back, overrides by dotted path, and diffs."""

import json
from abc import ABC, abstractmethod
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.errors import SpecError
from kiwi.spec import Spec, abstract_specs, allowed_names, diff, from_dict, override, to_dict


@dataclass(frozen=True, kw_only=True)
class Wheel(Spec):
    """Base class of three specs."""


@dataclass(frozen=True, kw_only=True)
class SpokedWheel(Wheel):
    spokes: int = 32
    rim: Literal["alloy", "carbon"] = "alloy"


@dataclass(frozen=True, kw_only=True)
class DiscWheel(Wheel):
    depth: float = 20.0


@dataclass(frozen=True, kw_only=True)
class NoWheel(Wheel):
    pass


@dataclass(frozen=True, kw_only=True)
class Lamp(Spec):
    """A spec without subclasses."""

    lumen: int = 100


@dataclass(frozen=True, kw_only=True)
class Frame(Spec):
    size: int
    front: Wheel = SpokedWheel()


@dataclass(frozen=True, kw_only=True)
class Bicycle(Spec):
    front: Wheel = SpokedWheel()
    rear: Wheel = SpokedWheel(spokes=36)
    lamp: Lamp | None = None
    gears: tuple[int, ...] = (11, 28)
    seat: tuple[float, str] = (1.5, "leather")
    spares: list[Wheel] = field(default_factory=list)
    width: int | float = 25
    name: str = "bike"
    notes: dict[str, int] = field(default_factory=dict)
    anything: Any = None
    frame: Frame = Frame(size=56)


wheels = st.one_of(
    st.builds(SpokedWheel, spokes=st.integers(1, 99), rim=st.sampled_from(["alloy", "carbon"])),
    st.builds(DiscWheel, depth=st.floats(allow_nan=False, allow_infinity=False)),
    st.just(NoWheel()),
)
bicycles = st.builds(
    Bicycle,
    front=wheels,
    rear=wheels,
    lamp=st.none() | st.builds(Lamp, lumen=st.integers()),
    gears=st.lists(st.integers()).map(tuple),
    seat=st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.text()),
    spares=st.lists(wheels, max_size=2),
    width=st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    name=st.text(),
    notes=st.dictionaries(st.text(), st.integers(), max_size=2),
    frame=st.builds(Frame, size=st.integers(), front=wheels),
)


@given(bicycles)
def test_round_trip_through_json_gives_the_same_spec(bicycle):
    assert from_dict(Bicycle, json.loads(json.dumps(to_dict(bicycle)))) == bicycle


@given(bicycles, bicycles)
def test_the_diff_to_a_baseline_gives_overrides_that_restore_the_spec(baseline, bicycle):
    changes = {path: new for path, (_, new) in diff(baseline, bicycle).items()}
    assert override(baseline, changes) == bicycle


@given(bicycles)
def test_a_diff_with_itself_is_empty(bicycle):
    assert diff(bicycle, bicycle) == {}


def test_plain_data_names_types_and_never_modules():
    assert to_dict(Frame(size=50, front=DiscWheel(depth=3.0))) == {
        "type": "Frame",
        "size": 50,
        "front": {"type": "DiscWheel", "depth": 3.0},
    }


def test_a_bare_name_and_a_partial_mapping_take_the_defaults():
    assert from_dict(Wheel, "DiscWheel") == DiscWheel(depth=20.0)
    assert from_dict(Wheel, {"type": "SpokedWheel", "spokes": 8}) == SpokedWheel(spokes=8)
    assert from_dict(Bicycle, {"lamp": {"lumen": 7}}).lamp == Lamp(lumen=7)


def test_a_partial_mapping_for_a_field_of_one_type_keeps_the_other_values_of_the_fields_default():
    """As jsonargparse does, so that `kiwi cache` and `kiwi fit` read a configuration alike."""

    @dataclass(frozen=True, kw_only=True)
    class Tyre(Spec):
        width: int = 25
        bar: float = 6.0

    @dataclass(frozen=True, kw_only=True)
    class Trike(Spec):
        left: Tyre = field(default_factory=lambda: Tyre(width=40, bar=3.0))
        right: Tyre = Tyre(width=30)

    trike = from_dict(Trike, {"left": {"width": 50}, "right": {"bar": 2.0}})
    assert (trike.left, trike.right) == (Tyre(width=50, bar=3.0), Tyre(width=30, bar=2.0))
    assert from_dict(Trike, {"left": {"type": "Tyre", "width": 50}}).left == Tyre(width=50)


def test_a_spec_is_accepted_as_data():
    assert from_dict(Wheel, DiscWheel(depth=4.0)) == DiscWheel(depth=4.0)


def test_allowed_names_are_the_subclasses_of_a_spec_or_the_spec_itself():
    assert allowed_names(Wheel) == ["DiscWheel", "NoWheel", "SpokedWheel"]
    assert allowed_names(Lamp) == ["Lamp"]


def test_specs_are_immutable_and_can_be_copied_with_changes():
    wheel = SpokedWheel()
    with pytest.raises(FrozenInstanceError):
        wheel.spokes = 3
    assert wheel.replace(spokes=3) == SpokedWheel(spokes=3)
    assert wheel == SpokedWheel()


def test_two_specs_cannot_share_a_name():
    with pytest.raises(AssertionError, match="two specs are named Lamp"):
        type("Lamp", (Spec,), {"__module__": "elsewhere"})


def test_the_error_for_an_unknown_name_lists_the_allowed_names_and_the_closest():
    with pytest.raises(SpecError) as caught:
        from_dict(Bicycle, {"front": "DiskWheel"})
    assert str(caught.value) == (
        "front has no choice named 'DiskWheel'. "
        "Expected: one of DiscWheel, NoWheel, SpokedWheel (did you mean DiscWheel?)."
    )


def test_the_name_of_an_unrelated_spec_is_rejected():
    with pytest.raises(SpecError, match="front has no choice named 'Lamp'"):
        from_dict(Bicycle, {"front": "Lamp"})


def test_the_error_for_an_unknown_field_has_its_path_and_the_closest_field():
    with pytest.raises(SpecError) as caught:
        from_dict(Bicycle, {"front": {"type": "SpokedWheel", "spoks": 3}})
    assert "SpokedWheel has no field 'front.spoks'" in str(caught.value)
    assert "one of rim, spokes (did you mean spokes?)" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["os.system", "kiwi.spec.Spec", "builtins:eval", "subprocess.Popen", f"{__name__}.SpokedWheel", "Spec", "Wheel"],
)
def test_import_paths_and_the_base_class_are_not_allowed_names(name):
    for data in (name, {"type": name}, {"type": name, "args": ["true"]}):
        with pytest.raises(SpecError, match="no choice named"):
            from_dict(Wheel, data)


@pytest.mark.parametrize("key", ["class_path", "_target_", "__class__"])
def test_import_paths_of_other_libraries_are_not_resolved(key):
    # The last part of a class_path is read as the name of a spec, and no spec has this name.
    code = "unknown-choice" if key == "class_path" else "missing-type"
    with pytest.raises(SpecError, check=lambda error: error.code == code):
        from_dict(Wheel, {key: "os.system"})
    with pytest.raises(SpecError, match="no choice named 'system'" if key == "class_path" else "has no field"):
        from_dict(Lamp, {key: "os.system"})


@pytest.mark.parametrize("data", [3, None, ["SpokedWheel"], {"type": ["SpokedWheel"]}, {"type": 3}])
def test_data_that_does_not_describe_a_spec_is_rejected(data):
    with pytest.raises(SpecError):
        from_dict(Wheel, data)


def test_a_field_without_default_must_be_given():
    with pytest.raises(SpecError, match=r"Frame at frame is missing required fields. Expected: size"):
        from_dict(Bicycle, {"frame": "Frame"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name has the wrong type. Got: 3. Expected: str."),
        ({"name": None}, "name has the wrong type. Got: None. Expected: str."),
        (
            {"front": {"type": "SpokedWheel", "spokes": True}},
            "front.spokes has the wrong type. Got: True. Expected: int.",
        ),
        (
            {"front": {"type": "SpokedWheel", "spokes": 3.0}},
            "front.spokes has the wrong type. Got: 3.0. Expected: int.",
        ),
        ({"front": {"type": "DiscWheel", "depth": "3"}}, "front.depth has the wrong type. Got: '3'. Expected: float."),
        ({"front": {"type": "DiscWheel", "depth": "1e-6"}}, "Fix: write it with a decimal point"),
        ({"front": {"type": "DiscWheel", "depth": float("nan")}}, "front.depth is not a finite number. Got: nan."),
        (
            {"front": {"type": "NoWheel", "rim": "alloy"}},
            "no field 'front.rim'. Expected: none, because",
        ),
        ({"front": {"type": "SpokedWheel", "rim": "carbn"}}, "one of alloy, carbon (did you mean carbon?)"),
        ({"front": None}, "front is not a spec. Got: None."),
        ({"gears": 11}, "gears is not a list. Got: 11."),
        ({"gears": "11"}, "gears is not a list. Got: '11'."),
        ({"gears": [11, "x"]}, "gears[1] has the wrong type. Got: 'x'. Expected: int."),
        ({"seat": [1.0]}, "seat has the wrong length. Got: 1. Expected: 2."),
        ({"spares": ["NoWheel", "Wheal"]}, "spares[1] has no choice named 'Wheal'"),
        ({"notes": ["a"]}, "notes is not a mapping. Got: ['a']."),
        ({"notes": {"a": "b"}}, "notes.a has the wrong type. Got: 'b'. Expected: int."),
        ({"notes": {1: 1}}, "notes's key has the wrong type. Got: 1. Expected: str."),
        ({"lamp": {"lumen": "x"}}, "lamp.lumen has the wrong type. Got: 'x'. Expected: int."),
        ({"width": "wide"}, "width matches none of the allowed types. Got: 'wide'."),
    ],
)
def test_a_value_of_the_wrong_type_is_reported_with_its_path(change, message):
    with pytest.raises(SpecError) as caught:
        from_dict(Bicycle, change)
    assert message in str(caught.value)


def test_literals_are_compared_with_their_type():
    @dataclass(frozen=True, kw_only=True)
    class Stand(Spec):
        legs: Literal[1, 2] = 1

    assert from_dict(Stand, {"legs": 2}) == Stand(legs=2)
    with pytest.raises(SpecError, match="legs cannot be True"):
        from_dict(Stand, {"legs": True})
    with pytest.raises(SpecError, match=r"legs cannot be '2'. Expected: one of 1, 2.*Fix: check the quotes"):
        from_dict(Stand, {"legs": "2"})


def test_values_are_converted_to_the_annotated_types():
    bicycle = from_dict(Bicycle, {"gears": [1, 2], "seat": [2, "x"], "lamp": None, "spares": ["NoWheel"], "width": 2.5})
    assert (bicycle.gears, bicycle.seat, bicycle.lamp, bicycle.spares) == ((1, 2), (2.0, "x"), None, [NoWheel()])
    assert type(bicycle.seat[0]) is float
    assert (bicycle.width, from_dict(Bicycle, {"anything": [1, {"a": None}]}).anything) == (2.5, [1, {"a": None}])


def test_override_sets_only_the_value_at_its_path():
    bicycle = override(Bicycle(), {"rear.spokes": 20, "name": "racer"})
    assert bicycle == Bicycle(rear=SpokedWheel(spokes=20), name="racer")


def test_override_replaces_a_spec_by_a_name_or_a_mapping():
    assert override(Bicycle(), {"rear": "DiscWheel"}) == Bicycle(rear=DiscWheel())
    assert override(Bicycle(), {"rear": {"type": "DiscWheel", "depth": 2}}) == Bicycle(rear=DiscWheel(depth=2.0))
    assert override(Bicycle(), {"lamp": "Lamp"}) == Bicycle(lamp=Lamp())
    assert override(Bicycle(lamp=Lamp()), {"lamp": None}) == Bicycle()


def test_replacing_a_spec_by_its_own_name_resets_its_fields_to_the_defaults():
    assert override(Bicycle(), {"rear": "SpokedWheel"}).rear == SpokedWheel(spokes=32)


@pytest.mark.parametrize("flip", [False, True])
def test_override_replaces_a_spec_and_sets_its_fields_in_any_order(flip):
    changes = {"frame": "Frame", "frame.size": 50, "frame.front": "DiscWheel", "frame.front.depth": 1.0}
    if flip:
        changes = dict(reversed(changes.items()))
    assert override(Bicycle(), changes).frame == Frame(size=50, front=DiscWheel(depth=1.0))


def test_override_sets_fields_of_a_spec_that_is_given_in_part():
    changes = {"frame": {"type": "Frame", "size": 1}, "frame.front.spokes": 5}
    assert override(Bicycle(), changes).frame == Frame(size=1, front=SpokedWheel(spokes=5))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "reer",
            "Bicycle has no field 'reer'. Expected: one of anything, frame, front, gears, lamp, name, notes, rear,",
        ),
        ("rear.spoks", "SpokedWheel has no field 'rear.spoks'. Expected: one of rim, spokes (did you mean spokes?)."),
        ("reer.spokes", "Bicycle has no field 'reer'. Expected: one of"),
        ("frame.frunt.spokes", "Frame has no field 'frame.frunt'. Expected: one of front, size"),
        ("name.first", "'name' is not a spec, so 'name.first' cannot be set. Got: bike."),
        ("lamp.lumen", "'lamp' is not a spec, so 'lamp.lumen' cannot be set"),
        ("rear.type", "SpokedWheel has no field 'rear.type'"),
    ],
)
def test_the_error_for_an_unknown_path_lists_the_fields_at_its_first_unknown_part(path, message):
    with pytest.raises(SpecError) as caught:
        override(Bicycle(), {path: 1})
    assert message in str(caught.value)


def test_an_override_is_checked_like_any_other_data():
    with pytest.raises(SpecError, match=r"must be text. Got: 1"):
        override(Bicycle(), {1: 2})
    with pytest.raises(SpecError, match=r"rear\.spokes has the wrong type"):
        override(Bicycle(), {"rear.spokes": "many"})
    with pytest.raises(SpecError, match=r"rear has no choice named 'os\.system'"):
        override(Bicycle(), {"rear": "os.system"})


def test_an_override_does_not_change_the_original():
    bicycle = Bicycle()
    override(bicycle, {"rear.spokes": 1, "front": "NoWheel"})
    assert bicycle == Bicycle()


def test_a_diff_has_the_deepest_paths_in_the_order_of_the_fields():
    bicycle = Bicycle(front=NoWheel(), rear=SpokedWheel(spokes=20), lamp=Lamp(), gears=(1,))
    assert list(diff(Bicycle(), bicycle).items()) == [
        ("front", ("SpokedWheel", "NoWheel")),
        ("rear.spokes", (36, 20)),
        ("lamp", (None, "Lamp")),
        ("gears", ([11, 28], [1])),
    ]


def test_a_diff_distinguishes_two_variants_of_the_same_new_type():
    shallow, deep = (diff(Bicycle(), Bicycle(front=DiscWheel(depth=depth))) for depth in (5.0, 80.0))
    assert shallow == {"front": ("SpokedWheel", "DiscWheel"), "front.depth": (20.0, 5.0)}
    assert deep == {"front": ("SpokedWheel", "DiscWheel"), "front.depth": (20.0, 80.0)}


def test_a_diff_lists_a_removed_spec():
    assert diff(Bicycle(lamp=Lamp()), Bicycle()) == {"lamp": ("Lamp", None)}


def test_abstract_specs_are_listed_and_concrete_ones_are_not():
    @dataclass(frozen=True, kw_only=True)
    class Animal(Spec, ABC):
        @abstractmethod
        def build(self) -> None: ...

    @dataclass(frozen=True, kw_only=True)
    class Kiwi(Animal):
        def build(self) -> None: ...

    assert Animal in abstract_specs()
    assert Kiwi not in abstract_specs()


def test_a_mapping_that_has_a_key_named_type_is_compared_as_a_value():
    plain, noted = Bicycle(frame=Frame(size=5)), Bicycle(frame=Frame(size=5), notes={"type": 3})
    assert diff(plain, noted) == {"notes": ({}, {"type": 3})}
    assert override(plain, {"notes": {"type": 3}}) == noted
