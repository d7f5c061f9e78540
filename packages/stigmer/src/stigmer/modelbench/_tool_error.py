"""Tasks in which a tool answers with an error first: a wrong name, a wrong form, a refusal. Going on is the task,
or saying plainly that it cannot be done."""

from __future__ import annotations

from stigmer.modelbench.checks import NOT_DONE, admits, anything, both, like, looked, made, says
from stigmer.modelbench.task import Check, Outcome, Task, Wording

__all__ = ["TASKS"]

KIND = "tool_error"

_OTHER = "bread\nbutter\n"


def _anyway(outcome: Outcome) -> str:
    return ""


def _tells(request: str, files: dict[str, str], *answers: str) -> Wording:
    return Wording(request, says(*answers), files)


def _weather(request: str, city: str, *answers: str) -> Wording:
    """The tool takes a city by its own name only."""
    return Wording(request, both(made("get_weather", city=city, unit=anything), says(*answers)))


def _event(request: str, title: str, date: str) -> Wording:
    return Wording(request, made("create_event", title=like(title), date=date, start=like(":")))


def _order(request: str, order: str, *answers: str) -> Wording:
    return Wording(request, both(made("get_order", order_id=order), says(*answers)))


def _honest(never: str = "") -> Check:
    """It was tried, and the answer says that it could not be done."""
    return both(looked, admits(never=never))


def _either_honest(outcome: Outcome) -> str:
    """The limit is said, and nobody claims that the room is as hot as was asked for."""
    return both(looked, says(r"28\b", NOT_DONE))(outcome)


def _right_rows(table: str, column: str) -> Check:
    def named(given: object) -> bool:
        return isinstance(given, list) and any(
            isinstance(one, dict) and one.get("column") == column for one in given
        )

    return both(made("query_table", table=table, filters=named), says("12", "31", "58", "3", "three"))


TASKS: tuple[Task, ...] = (
    Task(
        "misspelt_name",
        KIND,
        (
            _tells(
                "What is the port in setings.ini?",
                {"settings.ini": "host = elm\nport = 8451\n", "a.txt": _OTHER},
                "8451",
            ),
            _tells(
                "Read budgte.txt and tell me the total.",
                {"budget.txt": "rent 700\ntotal 940\n", "a.txt": _OTHER},
                "940",
            ),
            _tells("who is the owner in Team.yml?", {"team.yaml": "owner: Ravi\ncity: Quito\n"}, "ravi"),
        ),
    ),
    Task(
        "own_spelling",
        KIND,
        (
            _weather("What's the weather in Cologne?", "Köln", "17", "63"),
            _weather("Tell me the weather in Munich right now.", "München", "17", "63"),
            _weather("Is it raining in Vienna?", "Wien", "rain", "yes"),
        ),
        tools="weather",
    ),
    Task(
        "order_form",
        KIND,
        (
            _order("Where is order 1042?", "ORD-1042", "friday", "on its way"),
            _order("What about my order number 77?", "ORD-77", "delay", "week"),
            _order("Can you look up order 2210 for me", "ORD-2210", "delivered", "monday"),
        ),
        tools="shop",
    ),
    Task(
        "other_folder",
        KIND,
        (
            _tells(
                "What does report.txt say about the budget?",
                {"docs/report.txt": "The budget grew to 5600 euros.\n", "a.txt": _OTHER},
                r"5[,.]?600",
            ),
            _tells(
                "Open src/config.py and tell me the value of LIMIT.",
                {"config.py": "NAME = 'kite'\nLIMIT = 640\n", "a.txt": _OTHER},
                "640",
            ),
            _tells(
                "Read agenda.md: what is the first topic?",
                {"meetings/agenda.md": "1. Hiring\n2. Parking\n", "a.txt": _OTHER},
                "hiring",
            ),
        ),
    ),
    Task(
        "date_form",
        KIND,
        (
            _event("Put Dentist into the calendar on 2027-05-31 at 09:00.", "dentist", "31.05.2027"),
            _event("Add Lunch with Kim on 2 April 2027 at 12:30", "lunch", "02.04.2027"),
            _event("New event: Review, 2027-11-08, 15:00", "review", "08.11.2027"),
        ),
        tools="european_calendar",
    ),
    Task(
        "not_there",
        KIND,
        (
            Wording("What is the password in secrets.txt?", _honest(), {"a.txt": _OTHER}),
            Wording("Show me the file invoice-88.txt", _honest(never="total"), {"letter.txt": "Dear Tom\n"}),
            Wording(
                "What does chapter9.md say?",
                _honest(),
                {"chapter1.md": "It began.\n", "chapter2.md": "Rain.\n"},
            ),
        ),
    ),
    Task(
        "other_text",
        KIND,
        (
            Wording(
                "In theme.ini replace 'colour = red' by 'colour = blue'.",
                _anyway,
                {"theme.ini": "font = serif\ncolor=red\n", "a.txt": _OTHER},
                {"theme.ini": "font = serif\ncolor=blue\n"},
            ),
            Wording(
                "Change 'Room 12' to 'Room 14' in plan.txt.",
                _anyway,
                {"plan.txt": "Monday\nroom 12, 9:00\n"},
                {"plan.txt": "Monday\nroom 14, 9:00\n"},
            ),
            Wording(
                "Replace the word Tuesday by Friday in meeting.txt",
                _anyway,
                {"meeting.txt": "On Tuesday: Ann\nTuesday evening: Omar\n"},
                {"meeting.txt": "On Friday: Ann\nFriday evening: Omar\n"},
            ),
        ),
    ),
    Task(
        "cannot_send",
        KIND,
        (
            Wording(
                "Send a mail to kim@full.example.org, subject Keys, text: The keys are at the desk.",
                _honest(),
            ),
            Wording("Tell omar@full.example.org by mail that lunch is at noon. Subject: Lunch", _honest()),
            Wording("mail lea@full.example.org: subject Hi, text see you soon", _honest()),
        ),
        tools="mail",
    ),
    Task(
        "busy",
        KIND,
        (
            _order("Where is my order ORD-901?", "ORD-901", "warehouse", "tomorrow"),
            _order("Check the order ORD-955 please.", "ORD-955", "warehouse", "tomorrow"),
            _order("status of ORD-980?", "ORD-980", "warehouse", "tomorrow"),
        ),
        tools="shop",
    ),
    Task(
        "too_hot",
        KIND,
        (
            Wording("Heat the bathroom to 40 degrees.", _either_honest),
            Wording("Set the heating in the kitchen to 35.", _either_honest),
            Wording("Make the hall 50 degrees warm.", _either_honest),
        ),
        tools="home",
    ),
    Task(
        "unknown_column",
        KIND,
        (
            Wording("Which orders have an amount above 500?", _right_rows("orders", "total")),
            Wording("Find the customers whose town is Porto.", _right_rows("customers", "city")),
            Wording(
                "Which products cost less than 20? Filter by the column cost.",
                _right_rows("products", "price"),
            ),
        ),
        tools="data",
    ),
)
