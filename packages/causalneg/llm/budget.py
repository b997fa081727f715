"""What answers may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a generation set may cost, all its runs together.

    ``cost = (read * prompt_price + written * completion_price) / 1e6``

    Args:
        tokens: Tokens read and written, at most; None for no bound.
        money: Cost at most, in the currency of the prices; None for no bound.
        prompt_price: Price of a million tokens read.
        completion_price: Price of a million tokens written.

    Raises:
        ConfigError: There is a bound in money and no price.
    """

    tokens: Annotated[int, Ge(0)] | None = None
    money: Annotated[float, Ge(0)] | None = None
    prompt_price: Annotated[float, Ge(0)] = 0.0
    completion_price: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.money is not None and self.prompt_price == self.completion_price == 0:
            raise ConfigError(
                "money: a budget in money needs the prices of a million tokens read and written"
            )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of so many tokens.

        Args:
            prompt_tokens: Tokens read.
            completion_tokens: Tokens written.
        """
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6

    def allows(self, prompt_tokens: int, completion_tokens: int) -> bool:
        """Whether so many tokens are within the bounds.

        Args:
            prompt_tokens: Tokens read.
            completion_tokens: Tokens written.
        """
        if self.tokens is not None and prompt_tokens + completion_tokens > self.tokens:
            return False
        return self.money is None or self.cost(prompt_tokens, completion_tokens) <= self.money
