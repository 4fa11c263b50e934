"""A judge's spending, and the budget at which a run stops asking."""

from pathlib import Path
from threading import Lock

from kiwi.bench.ledger import Judgement
from kiwi.errors import InputError
from kiwi.vlm.prices import Price, find_price


class Budget:
    """Adds up what answers have cost; answers of models without a price cost nothing. Earlier answers count if added.

    Args:
        model: name of the model to ask, without its provider; None for a judge that costs nothing.
        limit: dollars after which no question is asked; None for no limit.
        prices: price table; by default the one in kiwi.

    Raises:
        InputError: there is a limit but no price, or the table cannot be read.
    """

    def __init__(self, model: str | None, limit: float | None, prices: Path | None) -> None:
        self.limit = limit
        self.price: Price | None = None if model is None else find_price(model, prices)
        if limit is not None and self.price is None:
            problem = f"--budget needs the price of {model}" if model else "--budget applies to judges that cost money"
            fix = "pass a price table with --prices; docs/judges.md describes it" if model else "remove it"
            raise InputError(problem, code="missing-price" if model else "unused-option", fix=fix)
        self.spent, self.answers, self._lock = 0.0, 0, Lock()
        self.is_blind = False

    def add(self, judgement: Judgement) -> None:
        """Add the cost of a judgement."""
        if judgement.reply is not None and judgement.usage is None:
            self.is_blind = True
        if self.price is not None and judgement.usage is not None:
            with self._lock:
                self.spent += self.price.cost(judgement.usage)
                self.answers += 1

    def estimate(self, answers: int) -> float | None:
        """Estimate the cost of further answers in dollars by the mean of the earlier ones; None without any."""
        return answers * self.spent / self.answers if self.answers else None

    def find_objection(self) -> str | None:
        """The reason why no further question may be asked, if there is one; questions in flight are still answered."""
        if self.limit is None:
            return None
        if self.is_blind:
            return "the judge does not report its tokens, so --budget cannot be kept"
        return f"the budget of {self.limit:g} dollars is spent" if self.spent >= self.limit else None
