"""Tasks that begin with one right call of a user's own tools: which of several alike, enums, lists, nested arguments."""

from __future__ import annotations

from stigmer.modelbench.checks import anything, called, like, one_of, same_items
from stigmer.modelbench.task import Task, Wording

__all__ = ["TASKS"]

KIND = "one_call"


def _address(given: object, name: str, street: str, zip_code: str, city: str) -> bool:
    if not isinstance(given, dict):
        return False
    wanted = {"name": name, "street": street, "zip": zip_code, "city": city}
    return all(word in str(given.get(key, "")).casefold() for key, word in wanted.items())


def _filter(given: object, column: str, op: str, value: str) -> bool:
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        return False
    one = given[0]
    return (one.get("column"), one.get("op"), str(one.get("value")).casefold()) == (column, op, value)


TASKS: tuple[Task, ...] = (
    Task(
        "get_weather",
        KIND,
        (
            Wording("What's the weather in Oslo?", called("get_weather", city=like("oslo"), unit=anything)),
            Wording(
                "How warm is it in Lima right now, in Fahrenheit?",
                called("get_weather", city=like("lima"), unit="fahrenheit"),
            ),
            Wording(
                "Wie ist das Wetter gerade in Hamburg?",
                called("get_weather", city=like("hamburg"), unit=one_of("celsius", None)),
            ),
        ),
        tools="weather",
    ),
    Task(
        "light",
        KIND,
        (
            Wording(
                "Turn off the light in the kitchen.",
                called("set_light", room="kitchen", on=False, brightness=anything),
            ),
            Wording(
                "Dim the bedroom light to 30 percent.",
                called("set_light", room="bedroom", on=True, brightness=30),
            ),
            Wording(
                "Licht im Bad an, bitte.",
                called("set_light", room="bathroom", on=True, brightness=one_of(None, 100)),
            ),
        ),
        tools="home",
    ),
    Task(
        "lock_door",
        KIND,
        (
            Wording("Lock the front door.", called("lock_door", door="front")),
            Wording("Please make sure that the garage is locked.", called("lock_door", door="garage")),
            Wording("Verrouille la porte de derrière, s'il te plaît.", called("lock_door", door="back")),
        ),
        tools="home",
    ),
    Task(
        "forecast",
        KIND,
        (
            Wording(
                "Will it rain in Bergen in the next 3 days?",
                called("get_forecast", city=like("bergen"), days=3),
            ),
            Wording("5 day forecast for Quito please", called("get_forecast", city=like("quito"), days=5)),
            Wording(
                "What will the weather in Perth be like over the next two weeks?",
                called("get_forecast", city=like("perth"), days=14),
            ),
        ),
        tools="weather",
    ),
    Task(
        "order_status",
        KIND,
        (
            Wording("Where is my order ORD-1042?", called("get_order", order_id="ORD-1042")),
            Wording("Can you check what happened to ORD-77", called("get_order", order_id="ORD-77")),
            Wording("¿Dónde está el pedido ORD-2210?", called("get_order", order_id="ORD-2210")),
        ),
        tools="shop",
    ),
    Task(
        "cancel_order",
        KIND,
        (
            Wording(
                "Please cancel order ORD-2210, you sent me the wrong item.",
                called("cancel_order", order_id="ORD-2210", reason="wrong_item"),
            ),
            Wording(
                "I changed my mind: cancel ORD-31",
                called("cancel_order", order_id="ORD-31", reason="changed_mind"),
            ),
            Wording(
                "ORD-77 comes too late for me. Cancel it!",
                called("cancel_order", order_id="ORD-77", reason="too_late"),
            ),
        ),
        tools="shop",
    ),
    Task(
        "create_event",
        KIND,
        (
            Wording(
                "Put a meeting called Budget review on 2027-03-14 at 10:00, with Ann and Omar.",
                called(
                    "create_event",
                    title=like("budget review"),
                    date="2027-03-14",
                    start="10:00",
                    attendees=same_items("Ann", "Omar"),
                ),
            ),
            Wording(
                "Add the event Dentist on 2027-05-31 at 09:30.",
                called("create_event", title=like("dentist"), date="2027-05-31", start="09:30"),
            ),
            Wording(
                "Which events are there on 2027-04-02?",
                called("list_events", date="2027-04-02"),
            ),
        ),
        tools="calendar",
    ),
    Task(
        "which_mail_tool",
        KIND,
        (
            Wording(
                "Draft a mail to lea@example.org with the subject Picnic saying that we meet at noon. "
                "Don't send it yet.",
                called("save_draft", to="lea@example.org", subject=like("picnic"), body=like("noon")),
            ),
            Wording(
                "Send a mail to tom@example.org, subject Keys, text: The keys are at the desk.",
                called(
                    "send_mail",
                    to="tom@example.org",
                    subject=like("keys"),
                    body=like("the keys are at the desk"),
                ),
            ),
            Wording(
                "Find the mails from billing@example.org",
                called("search_mail", sender="billing@example.org", words=anything),
            ),
        ),
        tools="mail",
    ),
    Task(
        "convert",
        KIND,
        (
            Wording(
                "How much is 250 USD in EUR?",
                called("convert_currency", amount=250, source="USD", target="EUR"),
            ),
            Wording(
                "Convert 12 miles to kilometres.",
                called("convert_length", value=12, source="mile", target="km"),
            ),
            Wording(
                "Was sind 80 Schweizer Franken in Yen?",
                called("convert_currency", amount=80, source="CHF", target="JPY"),
            ),
        ),
        tools="units",
    ),
    Task(
        "create_ticket",
        KIND,
        (
            Wording(
                "Open an urgent ticket 'Printer on fire' with the labels office and hardware.",
                called(
                    "create_ticket",
                    title=like("printer on fire"),
                    priority="urgent",
                    labels=same_items("office", "hardware"),
                ),
            ),
            Wording(
                "Create a ticket with low priority: Replace the coffee filter",
                called("create_ticket", title=like("coffee filter"), priority="low"),
            ),
            Wording(
                "New ticket, high priority, label network, title: WiFi drops in room 4",
                called(
                    "create_ticket", title=like("wifi drops"), priority="high", labels=same_items("network")
                ),
            ),
        ),
        tools="tickets",
    ),
    Task(
        "which_ticket_tool",
        KIND,
        (
            Wording("Give ticket 41 to Priya.", called("assign_ticket", number=41, person=like("priya"))),
            Wording("Ticket 87 is solved, close it.", called("close_ticket", number=87)),
            Wording(
                "Write below ticket 12: the new cable has arrived",
                called("comment_ticket", number=12, text=like("new cable has arrived")),
            ),
        ),
        tools="tickets",
    ),
    Task(
        "nested_arguments",
        KIND,
        (
            Wording(
                "Ship the parcel by express to Maria Silva, Rua Augusta 12, 1100 Lisbon.",
                called(
                    "ship_parcel",
                    to=lambda given: _address(given, "maria silva", "rua augusta 12", "1100", "lisbon"),
                    express=True,
                ),
            ),
            Wording(
                "Send a parcel to Jonas Weber, Hauptstr. 5, 50667 Köln. No hurry.",
                called(
                    "ship_parcel",
                    to=lambda given: _address(given, "jonas weber", "hauptstr", "50667", "köln"),
                    express=one_of(False, None),
                ),
            ),
            Wording(
                "ship it to Amy Wong, 8 Hill Road, zip 4101, Brisbane",
                called(
                    "ship_parcel",
                    to=lambda given: _address(given, "amy wong", "8 hill road", "4101", "brisbane"),
                    express=one_of(False, None),
                ),
            ),
        ),
        tools="shop",
    ),
    Task(
        "filters",
        KIND,
        (
            Wording(
                "Which orders have a total above 500?",
                called(
                    "query_table", table="orders", filters=lambda given: _filter(given, "total", ">", "500")
                ),
            ),
            Wording(
                "Find the customers in the city Porto.",
                called(
                    "query_table",
                    table="customers",
                    filters=lambda given: (
                        _filter(given, "city", "=", "porto") or _filter(given, "city", "contains", "porto")
                    ),
                ),
            ),
            Wording("How many rows has the table products?", called("count_rows", table="products")),
        ),
        tools="data",
    ),
)
