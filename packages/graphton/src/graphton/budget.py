"""Limits of a run, counted from the journal; the next model call is refused before it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphton.messages import Usage

__all__ = ["Budget", "Exceeded", "Meter"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may use. None is no limit. `seconds` is running time: waiting for a person does not count."""

    steps: int | None = 100
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = 7200.0


@dataclass(frozen=True, slots=True)
class Exceeded:
    """The limit that stopped a run, by its name in Budget, and its value."""

    limit: str
    value: float


@dataclass
class Meter:
    """What a run has used so far. `unpriced` counts model calls whose price nobody knows."""

    steps: int = 0
    usage: Usage = field(default_factory=Usage)
    usd: float | None = None
    unpriced: int = 0

    def add(self, usage: Usage, usd: float | None) -> None:
        """Count one reply."""
        self.steps += 1
        self.usage = self.usage + usage
        if usd is None:
            self.unpriced += 1
        else:
            self.usd = (self.usd or 0.0) + usd

    def over(self, budget: Budget, lost: Usage) -> Exceeded | None:
        """The limit that forbids one more model call; `lost` are calls whose replies never came back."""
        used = self.usage + lost
        for limit, value, spent in (
            ("steps", budget.steps, self.steps),
            ("tokens", budget.tokens, used.input_tokens + used.output_tokens),
            ("usd", budget.usd, self.usd or 0.0),
        ):
            if value is not None and spent >= value:
                return Exceeded(limit, float(value))
        return None
