"""What requests to a server may cost, what they have cost, and whether one more fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from megatron_native.alignment.prompts import Messages
from megatron_native.errors import UserError

_MILLION = 1_000_000
_TOKENS_A_MESSAGE = 16
_TOKENS_OF_A_TEMPLATE = 64


class BudgetSpentError(Exception):
    """The budget has no room for another request; every answer that was paid has been given.

    The message says what was spent and how to go on.
    """


def prompt_bound(messages: Messages) -> int:
    """Tokens that a chat has at most, with no tokenizer at hand: one for each UTF-8 byte, and what a template adds.

    Holds for tokenizers that work on bytes or fall back to them, which is every current one. Arabic has 2 bytes a letter
    and some 4 to 8 a token, so the bound is several times the truth.
    """
    texts = sum(len(message["content"].encode("utf-8")) + _TOKENS_A_MESSAGE for message in messages)
    return texts + _TOKENS_OF_A_TEMPLATE


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent. No limit where none is given.

    Attributes:
        max_tokens: of prompts and answers together, cached ones included.
        max_cost: in the currency of the prices.
        input_price, output_price: of a million tokens.
        cached_price: of a million prompt tokens that the server had cached; None: as `input_price`.

    Raises:
        UserError: a limit is negative, or there is a limit of cost and no price.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    cached_price: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 0:
                raise UserError(f"budget: {name} = {value} is negative; give 0 or more.")
        if self.max_cost is not None and not self.input_price and not self.output_price:
            raise UserError(
                f"budget: max_cost = {self.max_cost} without prices limits nothing; give the prices of a million input "
                "and output tokens."
            )

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.max_tokens is not None or self.max_cost is not None

    def cost(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """The price of so many tokens; `cached_tokens` are among the prompt's."""
        cached_price = self.input_price if self.cached_price is None else self.cached_price
        uncached = prompt_tokens - cached_tokens
        return (
            uncached * self.input_price + cached_tokens * cached_price + output_tokens * self.output_price
        ) / _MILLION

    def dearest(self, prompt_tokens: int, output_tokens: int) -> float:
        """The price of so many tokens at worst, whatever the server has cached."""
        return max(self.cost(prompt_tokens, cached, output_tokens) for cached in (0, prompt_tokens))


@dataclass(slots=True)
class Spending:
    """What has been spent, by what servers counted; where they did not say, by the worst case.

    Attributes:
        answers: paid in this run.
        journal_answers: given again from the journal, unpaid.
        prompt_tokens, cached_tokens, output_tokens: counted by servers, in the journal's earlier runs too.
        answers_without_usage: answers of this run for which the server gave no usage.
        failed_attempts: attempts of this run that gave no answer.
        assumed_prompt_tokens, assumed_output_tokens: the worst case of what nobody counted: answers without usage, and
            attempts that a server may have charged for (broken off, timed out, answered with something unreadable).
    """

    answers: int = 0
    journal_answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    answers_without_usage: int = 0
    failed_attempts: int = 0
    assumed_prompt_tokens: int = 0
    assumed_output_tokens: int = 0

    def tokens(self) -> int:
        """All of them, assumed ones too."""
        return self.prompt_tokens + self.output_tokens + self.assumed_prompt_tokens + self.assumed_output_tokens

    def cost(self, budget: Budget) -> float:
        """At a budget's prices, assumed tokens at their dearest."""
        counted = budget.cost(self.prompt_tokens, self.cached_tokens, self.output_tokens)
        return counted + budget.dearest(self.assumed_prompt_tokens, self.assumed_output_tokens)

    def as_parameters(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


class Account:
    """A budget, what has been spent of it, and the worst case of what is in flight."""

    def __init__(self, budget: Budget | None, count: Callable[[Messages], int] | None = None) -> None:
        self.budget = budget or Budget()
        self.spending = Spending()
        self.in_flight = 0
        self._count = count or prompt_bound
        self._reserved_prompt = 0
        self._reserved_output = 0

    def worst(self, messages: Messages, max_tokens: int) -> tuple[int, int]:
        """Prompt and output tokens of one request at most."""
        return self._count(messages), max_tokens

    def fits(self, worst: tuple[int, int]) -> bool:
        """Whether a request may be sent: what is spent, what is in flight and this stay within the budget."""
        budget = self.budget
        prompt, output = self._reserved_prompt + worst[0], self._reserved_output + worst[1]
        if budget.max_tokens is not None and self.spending.tokens() + prompt + output > budget.max_tokens:
            return False
        return budget.max_cost is None or self.spending.cost(budget) + budget.dearest(prompt, output) <= budget.max_cost

    def reserve(self, worst: tuple[int, int]) -> None:
        """An attempt is sent."""
        self.in_flight += 1
        self._reserved_prompt += worst[0]
        self._reserved_output += worst[1]

    def release(self, worst: tuple[int, int]) -> None:
        """The attempt is over; what it cost is booked by one of the following."""
        self.in_flight -= 1
        self._reserved_prompt -= worst[0]
        self._reserved_output -= worst[1]

    def book(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """Tokens as a server counted them."""
        self.spending.prompt_tokens += prompt_tokens
        self.spending.cached_tokens += cached_tokens
        self.spending.output_tokens += output_tokens

    def assume(self, worst: tuple[int, int]) -> None:
        """Tokens that nobody counted."""
        self.spending.assumed_prompt_tokens += worst[0]
        self.spending.assumed_output_tokens += worst[1]

    def spent_error(self) -> BudgetSpentError:
        """That there is no room for another request."""
        budget, spending = self.budget, self.spending
        limits = []
        if budget.max_tokens is not None:
            limits.append(f"{spending.tokens():,} of {budget.max_tokens:,} tokens")
        if budget.max_cost is not None:
            limits.append(f"{spending.cost(budget):.4f} of {budget.max_cost:.4f}")
        return BudgetSpentError(
            f"the budget is spent: {' and '.join(limits)}, and the next request could pass it; "
            "what was answered is kept. To go on, give a larger budget and start again."
        )
