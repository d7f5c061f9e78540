"""A right way through each task in its first wording: the calls, one reply each, then the answer."""

from __future__ import annotations

from typing import Any

Call = tuple[str, dict[str, Any]]

_SHIP = {"name": "Maria Silva", "street": "Rua Augusta 12", "zip": "1100", "city": "Lisbon"}

SOLVED: dict[str, tuple[list[Call], str]] = {
    "one_call/read_value": ([("read_file", {"path": "settings.ini"})], ""),
    "one_call/largest_file": ([("list_files", {})], ""),
    "one_call/get_weather": ([("get_weather", {"city": "Oslo"})], ""),
    "one_call/which_file_has": ([("search_files", {"text": "walrus"})], ""),
    "one_call/light": ([("set_light", {"room": "kitchen", "on": False})], ""),
    "one_call/find_by_pattern": ([("find_files", {"pattern": "*.py"})], ""),
    "one_call/write_file": ([("write_file", {"path": "hello.txt", "content": "Good morning, Nora"})], ""),
    "one_call/lock_door": ([("lock_door", {"door": "front"})], ""),
    "one_call/write_lines": ([("write_file", {"path": "data/letters.txt", "content": "alpha\nbeta\n"})], ""),
    "one_call/forecast": ([("get_forecast", {"city": "Bergen", "days": 3})], ""),
    "one_call/edit_text": ([("edit_file", {"path": "letter.txt", "old": "Monday", "new": "Tuesday"})], ""),
    "one_call/order_status": ([("get_order", {"order_id": "ORD-1042"})], ""),
    "one_call/list_folder": ([("list_files", {"path": "docs"})], ""),
    "one_call/cancel_order": ([("cancel_order", {"order_id": "ORD-2210", "reason": "wrong_item"})], ""),
    "one_call/other_languages": ([("search_files", {"text": "Dachs"})], ""),
    "one_call/create_event": (
        [
            (
                "create_event",
                {
                    "title": "Budget review",
                    "date": "2027-03-14",
                    "start": "10:00",
                    "attendees": ["Omar", "Ann"],
                },
            )
        ],
        "",
    ),
    "one_call/show_file": ([("read_file", {"path": "todo.md"})], ""),
    "one_call/which_mail_tool": (
        [("save_draft", {"to": "lea@example.org", "subject": "Picnic", "body": "We meet at noon."})],
        "",
    ),
    "one_call/run_command": ([("run_command", {"command": "make test"})], ""),
    "one_call/convert": ([("convert_currency", {"amount": 250, "source": "USD", "target": "EUR"})], ""),
    "one_call/create_ticket": (
        [
            (
                "create_ticket",
                {"title": "Printer on fire", "priority": "urgent", "labels": ["office", "hardware"]},
            )
        ],
        "",
    ),
    "one_call/which_ticket_tool": ([("assign_ticket", {"number": 41, "person": "Priya"})], ""),
    "one_call/nested_arguments": ([("ship_parcel", {"to": _SHIP, "express": True})], ""),
    "one_call/filters": (
        [("query_table", {"table": "orders", "filters": [{"column": "total", "op": ">", "value": "500"}]})],
        "",
    ),
    "no_call/greeting": ([], "Hello! How can I help?"),
    "no_call/capital": ([], "Paris."),
    "no_call/home_knowledge": ([], "They turn little of the current into heat."),
    "no_call/sum": ([], "7 + 5 = 12."),
    "no_call/thanks": ([], "You are welcome."),
    "no_call/translate": ([], "It is »Guten Morgen«."),
    "no_call/shop_talk": ([], "I am the help desk."),
    "no_call/about_itself": ([], "I can look into your files and change them."),
    "no_call/explain": ([], "A variable is a name for a value."),
    "no_call/calendar_knowledge": ([], "Seven days."),
    "no_call/poem": ([], "You have a good eye for detail."),
    "no_call/other_languages": ([], "Eine Woche hat sieben Tage."),
    "no_call/code_question": ([], "It returns 3."),
    "no_call/not_possible": ([], "I cannot order food."),
    "no_call/told_not_to": ([], "Blue."),
    "several_steps/report_value": ([("read_file", {"path": "server.ini"})], "The timeout is 47."),
    "several_steps/copy_value": (
        [
            ("read_file", {"path": "app.toml"}),
            ("write_file", {"path": "VERSION.txt", "content": "1.8.0"}),
        ],
        "Done.",
    ),
    "several_steps/largest_file": ([("list_files", {})], "The largest file is harbour.txt."),
    "several_steps/change_setting": (
        [
            ("read_file", {"path": "server.ini"}),
            ("edit_file", {"path": "server.ini", "old": "port = 8080", "new": "port = 9090"}),
        ],
        "Done.",
    ),
    "several_steps/which_file_has": ([("search_files", {"text": "penguin"})], "It is `zoo.txt`."),
    "several_steps/fix_spelling": (
        [("edit_file", {"path": "letter.txt", "old": "recieve", "new": "receive"})],
        "Corrected.",
    ),
    "several_steps/two_new_files": (
        [
            ("write_file", {"path": "a.txt", "content": "north"}),
            ("write_file", {"path": "b.txt", "content": "south"}),
        ],
        "Both files are there.",
    ),
    "several_steps/count_entries": ([("read_file", {"path": "hosts.json"})], "Four servers are listed."),
    "several_steps/find_then_change": (
        [
            ("search_files", {"text": "lighthouse"}),
            ("edit_file", {"path": "coast.txt", "old": "blue", "new": "green"}),
        ],
        "Replaced.",
    ),
    "several_steps/compare_files": (
        [("read_file", {"path": "ann.txt"}), ("read_file", {"path": "bob.txt"})],
        "Bob has the higher score, 88.",
    ),
    "several_steps/list_into_file": (
        [
            ("list_files", {"path": "recipes"}),
            ("write_file", {"path": "list.txt", "content": "soup.txt\nbread.txt\n"}),
        ],
        "Written.",
    ),
    "several_steps/other_languages": ([("read_file", {"path": "rechnung.txt"})], "Der Betrag ist 318 Euro."),
    "several_steps/add_line": (
        [
            ("read_file", {"path": "todo.txt"}),
            ("write_file", {"path": "todo.txt", "content": "water the ferns\npay rent\nbuy stamps\n"}),
        ],
        "Added.",
    ),
    "several_steps/files_and_shop": (
        [
            ("read_file", {"path": "order.txt"}),
            ("cancel_order", {"order_id": "ORD-2210", "reason": "wrong_item"}),
        ],
        "The order is cancelled.",
    ),
    "tool_error/misspelt_name": (
        [("read_file", {"path": "setings.ini"}), ("read_file", {"path": "settings.ini"})],
        "The port is 8451.",
    ),
    "tool_error/own_spelling": (
        [("get_weather", {"city": "Cologne"}), ("get_weather", {"city": "Köln"})],
        "17 degrees and light rain.",
    ),
    "tool_error/other_folder": (
        [("read_file", {"path": "report.txt"}), ("read_file", {"path": "docs/report.txt"})],
        "It grew to 5,600 euros.",
    ),
    "tool_error/order_form": (
        [("get_order", {"order_id": "1042"}), ("get_order", {"order_id": "ORD-1042"})],
        "It is on its way and arrives on Friday.",
    ),
    "tool_error/not_there": ([("read_file", {"path": "secrets.txt"})], "There is no file secrets.txt here."),
    "tool_error/date_form": (
        [
            ("create_event", {"title": "Dentist", "date": "2027-05-31", "start": "09:00"}),
            ("create_event", {"title": "Dentist", "date": "31.05.2027", "start": "09:00"}),
        ],
        "It is in your calendar.",
    ),
    "tool_error/other_text": (
        [
            ("edit_file", {"path": "theme.ini", "old": "colour = red", "new": "colour = blue"}),
            ("edit_file", {"path": "theme.ini", "old": "color=red", "new": "color=blue"}),
        ],
        "Done: the line was color=red.",
    ),
    "tool_error/cannot_send": (
        [
            (
                "send_mail",
                {"to": "kim@full.example.org", "subject": "Keys", "body": "The keys are at the desk."},
            )
        ],
        "Kim's mailbox is full, so the mail was not sent.",
    ),
    "tool_error/busy": (
        [("get_order", {"order_id": "ORD-901"}), ("get_order", {"order_id": "ORD-901"})],
        "It is in the warehouse and leaves tomorrow.",
    ),
    "tool_error/too_hot": (
        [("set_heating", {"room": "bathroom", "celsius": 40})],
        "That is too hot: 28 degrees are the limit.",
    ),
    "tool_error/unknown_column": (
        [
            (
                "query_table",
                {"table": "orders", "filters": [{"column": "amount", "op": ">", "value": "500"}]},
            ),
            ("query_table", {"table": "orders", "filters": [{"column": "total", "op": ">", "value": "500"}]}),
        ],
        "The orders 12, 31 and 58.",
    ),
}
