import pytest

from kiwi.errors import InputError
from kiwi.vlm.prices import Price, find_price
from kiwi.vlm.request import Usage


def test_the_longest_beginning_of_a_name_counts(tmp_path):
    table = tmp_path / "prices.yaml"
    table.write_text("gpt: {prompt: 1, answer: 2}\ngpt-mini: {prompt: 0.1, answer: 0.5}\n")
    assert find_price("gpt-mini-2026", table) == Price(prompt=0.1, answer=0.5)
    assert find_price("gpt-large", table) == Price(prompt=1, answer=2)
    assert find_price("other", table) is None


def test_the_shipped_table_has_the_judges_of_the_published_scores():
    usage = Usage(prompt_tokens=10**6, answer_tokens=10**5)
    assert find_price("gemini-2.5-pro").cost(usage) == pytest.approx(2.25)
    assert find_price("gemini-3-flash-preview").cost(usage) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "a: 1",
        "a: {prompt: 1}",
        "a: {prompt: -1, answer: 1}",
        "a: {prompt: x, answer: 1}",
        "a: [",
        "",
        '"": {prompt: 1, answer: 1}',
    ],
)
def test_a_file_that_is_not_a_price_table_is_rejected(tmp_path, text):
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(InputError, check=lambda error: error.code in ("invalid-prices", "unreadable-file")):
        find_price("a", tmp_path / "prices.yaml")
