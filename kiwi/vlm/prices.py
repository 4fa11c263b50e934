"""What answers of models cost, by a price table in YAML that users edit."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.errors import InputError
from kiwi.reading import read_yaml
from kiwi.vlm.request import Usage

BUILTIN_PRICES = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True, kw_only=True)
class Price:
    """Price of a model in dollars per million tokens read and written."""

    prompt: float
    answer: float

    def cost(self, usage: Usage) -> float:
        """Cost of tokens in dollars."""
        return (self.prompt * usage.prompt_tokens + self.answer * usage.answer_tokens) / 1e6


def find_price(model: str, file: Path | None = None) -> Price | None:
    """The price of a model by the longest beginning of its name in a price table; None without one.

    Raises:
        InputError: the table cannot be read, or has a price that is not a number.
    """
    table = read_yaml(file or BUILTIN_PRICES, what="price table")
    prices = {name: _parse_price(entry, name, file) for name, entry in _list_entries(table, file)}
    matching = [name for name in prices if model.startswith(name)]
    return prices[max(matching, key=len)] if matching else None


def _list_entries(table: Any, file: Path | None) -> Iterable[tuple[str, Any]]:
    if not isinstance(table, dict):
        raise _wrong_table(file, type(table).__name__)
    if not all(isinstance(name, str) and name for name in table):
        raise _wrong_table(file, "a name that is empty or no text")
    return table.items()


def _parse_price(entry: Any, name: str, file: Path | None) -> Price:
    if not isinstance(entry, dict) or set(entry) != {"prompt", "answer"}:
        raise _wrong_table(file, f"{name}: {entry}")
    if not all(type(value) in (int, float) and math.isfinite(value) and value >= 0 for value in entry.values()):
        raise _wrong_table(file, f"{name}: {entry}")
    return Price(prompt=float(entry["prompt"]), answer=float(entry["answer"]))


def _wrong_table(file: Path | None, got: str) -> InputError:
    expected = "lines such as `gemini-2.5-pro: {prompt: 1.25, answer: 10}`, in dollars per million tokens"
    return InputError(f"{file} is not a price table", code="invalid-prices", got=got[:80], expected=expected)
