"""Official rubrics are extracted from a script that is never run."""

from dataclasses import replace

import pytest

from kiwi.bench.rubric import extract_rubrics, read_rubric, read_rubrics, write_rubrics
from kiwi.errors import InputError

NAMES = ("Instruction Compliance", "Consistency & Detail Fidelity", "Visual Quality & Stability")
SCORES = "\n".join(f"{name}: A number from 1 to 5." for name in NAMES)
SCRIPT = f'''
import does_not_exist
open("RAN", "w").write("ran")
local_add_prompt = """
You are a rater of additions.
{SCORES}
"""
PROMPTS = {{"local_remove": "You rate removals." + "\\n" + """{SCORES}""".strip(), "other": 3}}
local_change = f"not {{1}} a constant"
'''
CATEGORIES = {"local_add": NAMES, "local_remove": NAMES}


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "eval.py"
    file.write_text(SCRIPT.replace("RAN", str(tmp_path / "ran")))
    return file


def test_prompts_are_extracted_without_running_the_script(script, tmp_path):
    rubrics = extract_rubrics(script, CATEGORIES)
    assert rubrics["local_add"].text.startswith("\nYou are a rater of additions.")
    assert rubrics["local_remove"].text == "You rate removals.\n" + SCORES
    assert {rubric.origin for rubric in rubrics.values()} == {"official"}
    assert not (tmp_path / "ran").exists()
    write_rubrics(tmp_path / "rubrics.json", rubrics)
    assert read_rubrics(tmp_path / "rubrics.json", CATEGORIES) == rubrics


@pytest.mark.parametrize("categories", [{"local_change": NAMES}, {"local_add": ("Beauty",)}])
def test_a_category_without_a_prompt_is_rejected(script, categories):
    with pytest.raises(InputError, check=lambda error: error.code == "ambiguous-rubric"):
        extract_rubrics(script, categories)


def test_two_prompts_of_a_category_are_rejected(script):
    script.write_text(script.read_text() + f'local_add_v2 = """Other.\n{SCORES}"""\n')
    with pytest.raises(InputError, check=lambda error: error.code == "ambiguous-rubric"):
        extract_rubrics(script, CATEGORIES)


@pytest.mark.parametrize("text", ["def (", "\0", "(" * 5000])
def test_a_script_that_is_not_python_is_rejected(tmp_path, text):
    (tmp_path / "eval.py").write_text(text)
    with pytest.raises(InputError, check=lambda error: error.code == "unreadable-file"):
        extract_rubrics(tmp_path / "eval.py", CATEGORIES)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"local_add": {"text": "a", "dimensions": ["b"]}, "local_remove": 3}', "x"]
)
def test_a_file_without_the_rubrics_is_rejected(tmp_path, text):
    (tmp_path / "rubrics.json").write_text(text)
    with pytest.raises(InputError):
        read_rubrics(tmp_path / "rubrics.json", CATEGORIES)


def test_a_rubric_file_needs_a_section_for_each_score(tmp_path):
    (tmp_path / "rubric.md").write_text("What to look for.\n\n## Instruction Compliance\n\n- 5: all\n")
    with pytest.raises(InputError, check=lambda error: error.code == "missing-section"):
        read_rubric(tmp_path / "rubric.md", "local_add", NAMES)


def test_the_hash_depends_on_text_and_dimensions_only(script):
    rubric = extract_rubrics(script, CATEGORIES)["local_add"]
    assert rubric.hash != replace(rubric, text=rubric.text + " ").hash
    assert rubric.hash != replace(rubric, dimensions=rubric.dimensions[::-1]).hash
    assert rubric.hash == replace(rubric, category="x").hash
