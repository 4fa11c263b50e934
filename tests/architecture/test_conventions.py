"""Conventions for names and error codes that no linter checks."""

import ast
import math
import re

import pytest

from kiwi import errors, shipped

PARTICIPLES = [
    "Asked", "Drawn", "Filled", "Found", "Given", "Kept", "Known", "Look", "Looked", "Made", "Measured", "Named",
    "Noted", "Rendered", "Scored", "Seen", "Shown", "Taken", "Told", "Wanted",
]  # fmt: skip
"""Participles that do not say what a class is."""


def error_classes(parsed):
    """Names of KiwiError and of all classes of the package that derive from it."""
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    classes = [node for module in parsed.values() for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    while derived := {c.name for c in classes if names & {getattr(base, "id", None) for base in c.bases}} - names:
        names |= derived
    return names


def is_code(node):
    """Whether an expression is a kebab-case literal, a choice of two, or the code of another error."""
    if isinstance(node, ast.IfExp):
        return is_code(node.body) and is_code(node.orelse)
    if isinstance(node, ast.Attribute):
        return node.attr == "code"
    if isinstance(node, ast.JoinedStr):  # such as f"unknown-{name}"
        return all(is_code(part) or isinstance(part, ast.FormattedValue) for part in node.values)
    return isinstance(node, ast.Constant) and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-?", str(node.value)) is not None


def without_code(module, names):
    """Lines in which an error of one of these classes is made without a code."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in names:
            code = next((keyword.value for keyword in node.keywords if keyword.arg == "code"), None)
            if not is_code(code):
                yield node.lineno


def test_every_error_has_a_literal_code(parsed):
    names = error_classes(parsed)
    assert "CheckpointError" in names
    assert [f"{name}:{line}" for name, module in parsed.items() for line in without_code(module, names)] == []


@pytest.mark.parametrize("call", ['InputError("x")', 'InputError("x", code="")', 'InputError("x", code="Not Kebab")'])
def test_the_rule_for_codes_finds_errors_without_one(call):
    assert list(without_code(ast.parse(call), {"InputError"})) == [1]


def test_no_class_is_named_by_a_participle(parsed):
    classes = [
        f"{name}: {node.name}"
        for name, module in parsed.items()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and node.name.lstrip("_") in PARTICIPLES
    ]
    assert classes == []


def names_defined_later(module):
    """Names in annotations that are defined below them or, as for type checkers only, never."""
    ends = {node.name: node.end_lineno for node in module.body if isinstance(node, ast.ClassDef)}
    unchecked = [node for node in module.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    ends |= {alias.name: math.inf for block in unchecked for node in block.body for alias in node.names}
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    unused = {node for function in functions for node in ast.walk(function) if isinstance(node, ast.AnnAssign)}
    for node in set(ast.walk(module)) - unused:  # Python does not evaluate the annotations of local variables
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for name in ast.walk(annotation) if annotation else ():
                if isinstance(name, ast.Name) and ends.get(name.id, 0) >= name.lineno:
                    yield name.id


def test_annotations_are_postponed_only_in_files_that_refer_to_names_defined_later(parsed):
    postponing = {file for file, module in parsed.items() if "annotations" in imported_from(module, "__future__")}
    assert postponing == {file for file, module in parsed.items() if [*names_defined_later(module)]}


def imported_from(module, source):
    imports = [node for node in module.body if isinstance(node, ast.ImportFrom) and node.module == source]
    return {alias.name for node in imports for alias in node.names}


def test_only_one_module_names_the_shipped_models(parsed):
    names = {name for name in shipped.FOLDERS if "/" in name}
    constants = [
        f"{file}: {node.value}"
        for file, module in parsed.items()
        if file != "kiwi/shipped.py"
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert constants == []
