"""Tools such as users write them: for the tasks that need other tools than files. Some fail first, as real ones do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from graphton.errors import ToolError
from graphton.tools import Tool, tool

__all__ = ["TOOLSETS", "Toolset", "own_tools"]


@dataclass(frozen=True, slots=True)
class Toolset:
    """What an agent of these tools is told, and its tools, made anew for each try. `files`: it has a folder, too."""

    instructions: str | None
    make: Callable[[], Sequence[Tool]]
    files: bool = False


_NATIVE_NAMES = {"Cologne": "Köln", "Munich": "München", "Vienna": "Wien"}


def _weather() -> Sequence[Tool]:
    @tool(effect="read")
    def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
        """Tells the weather in a city right now."""
        for english, native in _NATIVE_NAMES.items():
            if city.casefold().startswith(english.casefold()):
                raise ToolError(f"unknown city {city!r}; spell it as the people there do: {native!r}")
        return (
            f"{city}: 17 degrees celsius, light rain"
            if unit == "celsius"
            else f"{city}: 63 degrees fahrenheit, light rain"
        )

    @tool(effect="read")
    def get_forecast(city: str, days: int) -> str:
        """Tells the weather of the next days in a city.

        Args:
            days: How many days ahead, 1 to 14.
        """
        return f"{city}, next {days} days: dry at first, rain from the second day on, 12 to 19 degrees"

    return get_weather, get_forecast


Room = Literal["kitchen", "living_room", "bedroom", "bathroom", "hall"]


def _home() -> Sequence[Tool]:
    @tool(effect="idempotent")
    def set_light(room: Room, on: bool, brightness: int | None = None) -> str:
        """Turns the light of a room on or off.

        Args:
            brightness: In percent, 1 to 100.
        """
        return f"the light in the {room} is {'on' if on else 'off'}" + (
            f" at {brightness} %" if brightness else ""
        )

    @tool(effect="idempotent")
    def set_heating(room: Room, celsius: float) -> str:
        """Sets the temperature that a room is heated to."""
        if celsius > 28:
            raise ToolError(f"{celsius:g} degrees is too hot: at most 28 are allowed; nothing was changed")
        return f"the {room} is heated to {celsius:g} degrees"

    @tool(effect="idempotent")
    def lock_door(door: Literal["front", "back", "garage"]) -> str:
        """Locks a door."""
        return f"the {door} door is locked"

    return set_light, set_heating, lock_door


def _calendar() -> Sequence[Tool]:
    @tool(effect="write")
    def create_event(title: str, date: str, start: str, attendees: list[str] | None = None) -> str:
        """Puts an event into the calendar.

        Args:
            date: Such as 2027-05-31.
            start: Such as 09:30.
        """
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
            raise ToolError(f"date {date!r} is not written like 2027-05-31")
        if not re.fullmatch(r"\d{2}:\d{2}", start):
            raise ToolError(f"start {start!r} is not written like 09:30")
        return f"created {title!r} on {date} at {start}"

    @tool(effect="read")
    def list_events(date: str) -> str:
        """Lists the events of a day."""
        return f"{date}: 09:00 Standup, 13:00 Lunch with Kim"

    @tool(effect="write")
    def delete_event(title: str, date: str) -> str:
        """Deletes an event."""
        return f"deleted {title!r} on {date}"

    return create_event, list_events, delete_event


def _european_calendar() -> Sequence[Tool]:
    @tool(effect="write")
    def create_event(title: str, date: str, start: str) -> str:
        """Puts an event into the calendar."""
        if not re.fullmatch(r"\d{2}\.\d{2}\.\d{4}", date):
            raise ToolError(f"date {date!r} must be written as day, month, year with dots: 31.12.2030")
        return f"created {title!r} on {date} at {start}"

    @tool(effect="read")
    def list_events(date: str) -> str:
        """Lists the events of a day."""
        return f"{date}: nothing"

    return create_event, list_events


def _mail() -> Sequence[Tool]:
    @tool(effect="write")
    def send_mail(to: str, subject: str, body: str) -> str:
        """Sends a mail."""
        if to.endswith("@full.example.org"):
            raise ToolError(f"the mailbox of {to} is full: the mail was not sent")
        return f"sent to {to}"

    @tool(effect="write")
    def save_draft(to: str, subject: str, body: str) -> str:
        """Saves a mail as a draft, without sending it."""
        return f"saved the draft to {to}"

    @tool(effect="read")
    def search_mail(sender: str | None = None, words: str | None = None) -> str:
        """Finds mails by their sender or by words in them."""
        return "2 mails: 'Invoice 88' of 2027-02-01, 'Reminder' of 2027-03-01"

    return send_mail, save_draft, search_mail


class Address(TypedDict):
    """Where a parcel goes."""

    name: str
    street: str
    zip: str
    city: str


Reason = Literal["changed_mind", "too_late", "wrong_item", "other"]
_STATUS = {
    "ORD-1042": "on its way, arrives on Friday",
    "ORD-77": "delayed by a week",
    "ORD-2210": "delivered on Monday",
}


def _shop() -> Sequence[Tool]:
    tries: dict[str, int] = {}

    @tool(effect="read")
    def get_order(order_id: str) -> str:
        """Tells where an order is."""
        if not re.fullmatch(r"ORD-\d+", order_id):
            raise ToolError(f"order_id {order_id!r} is not written like ORD-123")
        tries[order_id] = tries.get(order_id, 0) + 1
        if order_id.startswith("ORD-9") and tries[order_id] == 1:
            raise ToolError("the order system is busy; try the same call again")
        return f"{order_id}: {_STATUS.get(order_id, 'in the warehouse, leaves tomorrow')}"

    @tool(effect="write")
    def cancel_order(order_id: str, reason: Reason) -> str:
        """Cancels an order."""
        return f"{order_id} is cancelled ({reason})"

    @tool(effect="write")
    def ship_parcel(to: Address, express: bool = False) -> str:
        """Ships a parcel to an address."""
        return f"shipped to {to['name']}{' by express' if express else ''}"

    @tool(effect="read")
    def check_stock(item: str) -> str:
        """Tells how many of an item are in stock."""
        return f"{item}: 14 in stock"

    return get_order, cancel_order, ship_parcel, check_stock


def _tickets() -> Sequence[Tool]:
    @tool(effect="write")
    def create_ticket(
        title: str, priority: Literal["low", "normal", "high", "urgent"], labels: list[str] | None = None
    ) -> str:
        """Opens a ticket."""
        return f"ticket 101 {title!r} is open ({priority})"

    @tool(effect="write")
    def assign_ticket(number: int, person: str) -> str:
        """Gives a ticket to a person."""
        return f"ticket {number} is given to {person}"

    @tool(effect="write")
    def close_ticket(number: int) -> str:
        """Closes a ticket that is solved."""
        return f"ticket {number} is closed"

    @tool(effect="write")
    def comment_ticket(number: int, text: str) -> str:
        """Writes a comment below a ticket."""
        return f"commented on ticket {number}"

    return create_ticket, assign_ticket, close_ticket, comment_ticket


class Filter(TypedDict):
    """A condition on one column."""

    column: str
    op: Literal["=", "<", ">", "contains"]
    value: str


_COLUMNS = {
    "orders": ("id", "customer", "total"),
    "customers": ("id", "name", "city"),
    "products": ("id", "name", "price"),
}


def _data() -> Sequence[Tool]:
    @tool(effect="read")
    def query_table(table: Literal["customers", "orders", "products"], filters: list[Filter]) -> str:
        """Finds the rows of a table that fit all filters."""
        known = _COLUMNS[table]
        for one in filters:
            if one["column"] not in known:
                raise ToolError(f"{table} has no column {one['column']!r}, only {', '.join(known)}")
        return f"3 rows of {table}: 12, 31 and 58"

    @tool(effect="read")
    def count_rows(table: Literal["customers", "orders", "products"]) -> str:
        """Counts all rows of a table."""
        return f"{table}: 4210 rows"

    return query_table, count_rows


Currency = Literal["EUR", "USD", "GBP", "JPY", "CHF"]
Length = Literal["m", "km", "mile", "foot"]
_METRES = {"m": 1.0, "km": 1000.0, "mile": 1609.344, "foot": 0.3048}
_EUROS = {"EUR": 1.0, "USD": 0.9, "GBP": 1.15, "JPY": 0.006, "CHF": 1.05}


def _units() -> Sequence[Tool]:
    @tool(effect="read")
    def convert_currency(amount: float, source: Currency, target: Currency) -> str:
        """Converts an amount of money at today's rate."""
        return f"{amount * _EUROS[source] / _EUROS[target]:.2f} {target}"

    @tool(effect="read")
    def convert_length(value: float, source: Length, target: Length) -> str:
        """Converts a length."""
        return f"{value * _METRES[source] / _METRES[target]:.2f} {target}"

    return convert_currency, convert_length


TOOLSETS: dict[str, Toolset] = {
    "files": Toolset(None, tuple, files=True),
    "files+shop": Toolset(None, _shop, files=True),
    "weather": Toolset("You tell people about the weather.", _weather),
    "home": Toolset("You look after a house.", _home),
    "calendar": Toolset("You keep the user's calendar.", _calendar),
    "european_calendar": Toolset("You keep the user's calendar.", _european_calendar),
    "mail": Toolset("You help with the user's mail.", _mail),
    "shop": Toolset("You work for the help desk of a shop.", _shop),
    "tickets": Toolset("You look after the tickets of a team.", _tickets),
    "data": Toolset("You answer questions about the company's data.", _data),
    "units": Toolset("You convert money and lengths.", _units),
}
"""None as instructions: those of the default agent."""


def own_tools(name: str) -> list[Tool]:
    """Fresh tools of a toolset: what an earlier try left behind is forgotten."""
    return list(TOOLSETS[name].make())
