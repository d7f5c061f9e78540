"""A model that its provider has taken away: the table's successor goes on, no other model does."""

from __future__ import annotations

import pytest
from graphton.agent import create_deep_agent
from graphton.errors import StatusError
from graphton.journal import Fallback, MemoryJournal
from graphton.models import ModelRef, succeeds
from graphton.testing import ScriptedModel

OLD = ModelRef("openai", "o4-mini")
NEW = ModelRef("openai", "gpt-6.1-terra")


def gone(status: int = 404) -> StatusError:
    return StatusError("the model `o4-mini` does not exist", status=status)


@pytest.mark.parametrize("status", [404, 410])
async def test_the_successor_takes_over_when_the_model_is_gone_and_an_event_says_so(status: int) -> None:
    journal = MemoryJournal()
    agent = create_deep_agent(
        ScriptedModel([gone(status)], ref=OLD), fallbacks=[ScriptedModel(["done"], ref=NEW)]
    )
    assert (await agent.run("go", journal=journal)).text == "done"
    (event,) = [event for event in journal.events if isinstance(event, Fallback)]
    assert (event.from_, event.to) == (str(OLD), str(NEW))
    assert "does not exist" in event.reason


async def test_a_model_that_never_was_is_no_reason_for_another() -> None:
    other = ScriptedModel(["never"], ref=ModelRef("openai", "gpt-6-luna"))
    agent = create_deep_agent(ScriptedModel([gone()], ref=OLD), fallbacks=[other])
    with pytest.raises(StatusError, match="does not exist"):
        await agent.run("go")
    assert other.requests == []


def test_a_successor_is_what_the_table_says_at_its_own_provider() -> None:
    assert succeeds(NEW, OLD)
    assert succeeds(
        ModelRef("anthropic", "claude-sonnet-5-5"), ModelRef("anthropic", "claude-sonnet-4-5-20250929")
    )
    assert not succeeds(OLD, NEW)
    assert not succeeds(OLD, OLD)
    assert not succeeds(ModelRef("openrouter", "gpt-6.1-terra"), OLD)
    assert not succeeds(NEW, ModelRef("openai", "my-finetune"))
