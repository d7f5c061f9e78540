"""Tasks that need no tool: small talk, knowledge, and what no offered tool can do."""

from __future__ import annotations

from collections.abc import Mapping

from stigmer.modelbench.checks import about, both, no_call, says
from stigmer.modelbench.task import Task, Wording

__all__ = ["TASKS"]

KIND = "no_call"

_FILES: Mapping[str, str] = {
    "notes.txt": "Call the plumber.\n",
    "todo.md": "- buy stamps\n",
    "sky.txt": "grey\n",
}


def _plain(request: str, *answers: str, never: str = "") -> Wording:
    return Wording(request, both(no_call, says(*answers, never=never) if answers else about), _FILES)


def _bare(request: str, *answers: str, never: str = "") -> Wording:
    """For agents without a folder."""
    return Wording(request, both(no_call, says(*answers, never=never) if answers else about))


_DEGREES = r"\d+\s*(°|degrees)"
_DONE = r"(I|I've|I have) (ordered|called|booked|placed)"

TASKS: tuple[Task, ...] = (
    Task("greeting", KIND, (_plain("hello"), _plain("Hi there, how are you?"), _plain("Good evening!"))),
    Task(
        "capital",
        KIND,
        (
            _plain("What is the capital of France?", "paris"),
            _plain("Which city is the capital of Japan?", "tokyo"),
            _plain("Name the capital of Egypt.", "cairo"),
        ),
    ),
    Task(
        "sum",
        KIND,
        (
            _plain("What is 7+5?", "12", "twelve"),
            _plain("How much is 9 times 3?", "27", "twenty-seven"),
            _plain("what's 20 minus 6", "14", "fourteen"),
        ),
    ),
    Task(
        "home_knowledge",
        KIND,
        (
            _bare("Why do LED lamps save energy?", r"\w+\s+\w+\s+\w+"),
            _bare("What does a thermostat do?", "temperature|heat|warm"),
            _bare("Thanks, that's all for today.", r"\w+"),
        ),
        tools="home",
    ),
    Task("thanks", KIND, (_plain("Thanks, that was all."), _plain("Great, thank you!"), _plain("ok bye"))),
    Task(
        "translate",
        KIND,
        (
            _plain("Translate 'good morning' into German.", r"guten\s+morgen"),
            _plain("How do you say 'thank you' in Spanish?", "gracias"),
            _plain("What is the French word for 'cat'?", "chat"),
        ),
    ),
    Task(
        "about_itself",
        KIND,
        (
            _plain("What can you do?"),
            _plain("Who are you?"),
            _plain("Can you help me with my files later?"),
        ),
    ),
    Task(
        "shop_talk",
        KIND,
        (
            _bare("Hello, who are you?", r"\w+"),
            _bare("What does the word 'refund' mean?", "money|pay|paid|return|back"),
            _bare("Thank you, goodbye!", r"\w+"),
        ),
        tools="shop",
    ),
    Task(
        "explain",
        KIND,
        (
            _plain("Explain in one sentence what a variable is.", "value|data|stor|name|contain|represent"),
            _plain("What does the abbreviation CPU stand for?", r"central\s+processing\s+unit"),
            _plain("In one sentence: what is a compiler?", "code|program|translat|source"),
        ),
    ),
    Task(
        "calendar_knowledge",
        KIND,
        (
            _bare("How many days are in a week?", "7", "seven"),
            _bare("Which month comes after June?", "july"),
            _bare("How many hours has a day?", "24", "twenty-four"),
        ),
        tools="calendar",
    ),
    Task(
        "poem",
        KIND,
        (
            _plain("Say something nice to me."),
            _plain("Tell me a short joke."),
            _plain(
                "Write a poem of two lines about rain. Just answer here.",
                "rain|drop|drip|cloud|sky|wet|storm",
            ),
        ),
    ),
    Task(
        "other_languages",
        KIND,
        (
            _plain("Wie viele Tage hat eine Woche?", "7", "sieben"),
            _plain("Quelle est la couleur de la neige ?", "blanc"),
            _plain("¿Cuántas patas tiene un perro?", "4", "cuatro"),
        ),
    ),
    Task(
        "code_question",
        KIND,
        (
            _plain("In Python, what does len([1, 2, 3]) return?", "3", "three"),
            _plain("Which keyword defines a function in Python?", r"def\b"),
            _plain("What is the file ending of Python files?", r"\.?py"),
        ),
    ),
    Task(
        "not_possible",
        KIND,
        (
            _plain("Order a pizza for me.", r"\w+", never=_DONE),
            _plain("How warm is it outside my window right now?", r"\w+", never=_DEGREES),
            _plain("Call my mother, please.", r"\w+", never=_DONE),
        ),
    ),
    Task(
        "told_not_to",
        KIND,
        (
            _plain("Do not use any tool. What colour is the sky on a clear day?", "blue"),
            _plain("Without looking at any file: what is the opposite of hot?", "cold", "cool"),
            _plain("Just answer from memory, which planet do we live on?", "earth"),
        ),
    ),
)
