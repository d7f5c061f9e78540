"""Tasks that begin with one right call: which tool, with which arguments. Nothing after the first reply counts."""

from __future__ import annotations

from stigmer.modelbench.checks import any_of, anything, both, called, like, one_of, same_items, shows
from stigmer.modelbench.task import Check, Outcome, Task, Wording

__all__ = ["TASKS"]

KIND = "one_call"

_NOTES = "Call the plumber.\nThe key lies under the red pot.\n"
_LONG = "It was a long winter, and the river stood still.\n" * 12

_INI = "[server]\nhost = alder.example.org\nport = 8451\nworkers = 4\n"
_JSON = '{\n  "name": "atlas",\n  "region": "eu-north",\n  "retries": 5\n}\n'
_YAML = "name: kite\nowner: Ingrid\nbudget: 1200\n"


def _command(*words: str) -> Check:
    """A shell command that does it too, as far as it can be told without running it; a person is asked first."""
    return called("run_command", refused=True, command=like(*words), timeout_seconds=anything)


def _file_is(path: str, text: str) -> Check:
    def check(outcome: Outcome) -> str:
        found = outcome.files.get(path)
        if found is None:
            return f"there is no {path!r}"
        return "" if found.strip() == text.strip() else f"{path!r} holds {found!r}"

    return check


def _replaced(path: str, before: str, after: str) -> Check:
    """The file is changed, or was read first, which is careful and right as well."""
    return any_of(_file_is(path, after), both(_file_is(path, before), shows(*before.split("\n")[:2])))


def _edit(request: str, path: str, before: str, after: str) -> Wording:
    return Wording(request, _replaced(path, before, after), {path: before, "notes.txt": _NOTES}, changes=None)


TASKS: tuple[Task, ...] = (
    Task(
        "read_value",
        KIND,
        (
            Wording(
                "What is the port in settings.ini?",
                shows("8451"),
                {"settings.ini": _INI, "notes.txt": _NOTES},
            ),
            Wording(
                "Please open config/app.json and tell me the region.",
                shows("eu-north"),
                {"config/app.json": _JSON, "notes.txt": _NOTES},
            ),
            Wording(
                "i need the owner from project.yaml",
                shows("Ingrid"),
                {"project.yaml": _YAML, "todo.md": "- buy stamps\n"},
            ),
        ),
    ),
    Task(
        "largest_file",
        KIND,
        (
            Wording(
                "Which file in this folder is the largest?",
                any_of(shows("river.txt", "notes.txt", tool="list_files"), _command("ls"), _command("du")),
                {"river.txt": _LONG, "notes.txt": _NOTES, "a.csv": "x,y\n1,2\n"},
            ),
            Wording(
                "What's the biggest file here?",
                any_of(shows("winter.md", "plan.txt", tool="list_files"), _command("ls"), _command("du")),
                {"winter.md": _LONG, "plan.txt": _NOTES, "b.txt": "b\n"},
            ),
            Wording(
                "List the files of this folder with their sizes.",
                any_of(shows("story.txt", "main.py", tool="list_files"), _command("ls")),
                {"story.txt": _LONG, "main.py": "print(1)\n"},
            ),
        ),
    ),
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
        "which_file_has",
        KIND,
        (
            Wording(
                "Which file contains the word walrus?",
                any_of(shows("zoo.txt", "walrus"), _command("grep", "walrus")),
                {"zoo.txt": "A seal.\nA walrus on the ice.\n", "notes.txt": _NOTES, "a.txt": "a\n"},
            ),
            Wording(
                'Find the file that mentions "lantern".',
                any_of(shows("camp.md", "lantern"), _command("grep", "lantern")),
                {"camp.md": "Tent, rope, lantern.\n", "notes.txt": _NOTES, "list.txt": "bread\n"},
            ),
            Wording(
                "where is 'quarantine' written?",
                any_of(shows("rules.txt", "quarantine"), _command("grep", "quarantine")),
                {"rules.txt": "Rule 4: quarantine for a week.\n", "notes.txt": _NOTES},
            ),
        ),
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
        "find_by_pattern",
        KIND,
        (
            Wording(
                "Find all Python files, in the folders below too.",
                any_of(shows("main.py", "src/util.py"), _command(".py")),
                {"main.py": "print(1)\n", "src/util.py": "x = 1\n", "README.md": "# Kite\n"},
            ),
            Wording(
                "Which files here end in .csv? Look into subfolders as well.",
                any_of(shows("data/june.csv", "data/july.csv"), _command("csv")),
                {"data/june.csv": "a\n1\n", "data/july.csv": "a\n2\n", "notes.txt": _NOTES},
            ),
            Wording(
                "Search for all files whose name matches *.md",
                any_of(shows("README.md", "docs/setup.md"), _command(".md")),
                {"README.md": "# Kite\n", "docs/setup.md": "Install it.\n", "main.py": "print(1)\n"},
            ),
        ),
    ),
    Task(
        "write_file",
        KIND,
        (
            Wording(
                'Create a file hello.txt with the text "Good morning, Nora"',
                shows("hello.txt"),
                {"notes.txt": _NOTES},
                {"hello.txt": "Good morning, Nora"},
            ),
            Wording(
                "Save the sentence The train leaves at 7:40 in trip.md",
                shows("trip.md"),
                {},
                {"trip.md": "The train leaves at 7:40"},
            ),
            Wording(
                "new file memo.txt with 'ask Priya about the lease' in it please",
                shows("memo.txt"),
                {"todo.txt": "stamps\n"},
                {"memo.txt": "ask Priya about the lease"},
            ),
        ),
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
        "write_lines",
        KIND,
        (
            Wording(
                'Put the two lines "alpha" and "beta" into data/letters.txt',
                shows("data/letters.txt"),
                {},
                {"data/letters.txt": "alpha\nbeta"},
            ),
            Wording(
                "Create names.csv with this content:\nname,age\nLeila,31\nKofi,28",
                shows("names.csv"),
                {"notes.txt": _NOTES},
                {"names.csv": "name,age\nLeila,31\nKofi,28"},
            ),
            Wording(
                "Write a file run.sh of two lines: the first is #!/bin/sh and the second is echo done",
                shows("run.sh"),
                {},
                {"run.sh": "#!/bin/sh\necho done"},
            ),
        ),
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
        "edit_text",
        KIND,
        (
            _edit(
                "In letter.txt replace Monday by Tuesday.",
                "letter.txt",
                "Dear Tom,\nsee you on Monday.\n",
                "Dear Tom,\nsee you on Tuesday.\n",
            ),
            _edit(
                "Change the colour red to green in theme.css",
                "theme.css",
                "body { color: red; }\np { margin: 0; }\n",
                "body { color: green; }\np { margin: 0; }\n",
            ),
            _edit(
                "Edit menu.txt: the soup costs 6 euros now, not 5 euros.",
                "menu.txt",
                "Salad: 4 euros\nSoup: 5 euros\n",
                "Salad: 4 euros\nSoup: 6 euros\n",
            ),
        ),
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
        "list_folder",
        KIND,
        (
            Wording(
                "What is in the folder docs?",
                any_of(shows("intro.md", "usage.md"), _command("docs")),
                {"docs/intro.md": "Hi.\n", "docs/usage.md": "Run it.\n", "main.py": "print(1)\n"},
            ),
            Wording(
                "Show me the names of the files in photos/",
                any_of(shows("beach.txt", "dog.txt"), _command("photos")),
                {"photos/beach.txt": "b\n", "photos/dog.txt": "d\n", "notes.txt": _NOTES},
            ),
            Wording(
                "List the directory src",
                any_of(shows("app.py", "db.py"), _command("src")),
                {"src/app.py": "x = 1\n", "src/db.py": "y = 2\n", "README.md": "# Kite\n"},
            ),
        ),
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
        "other_languages",
        KIND,
        (
            Wording(
                "Welche Datei enthält das Wort Dachs?",
                any_of(shows("wald.txt", "Dachs"), _command("grep", "Dachs")),
                {"wald.txt": "Der Dachs schläft.\n", "stadt.txt": "Die Bahn fährt.\n"},
            ),
            Wording(
                "Crée un fichier bonjour.txt qui contient : Bonjour à tous",
                shows("bonjour.txt"),
                {"notes.txt": _NOTES},
                {"bonjour.txt": "Bonjour à tous"},
            ),
            Wording(
                "¿Qué pone en el archivo lista.txt?",
                shows("pan, leche"),
                {"lista.txt": "pan, leche, huevos\n", "a.txt": "a\n"},
            ),
        ),
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
        "show_file",
        KIND,
        (
            Wording(
                "Show me todo.md",
                any_of(shows("water the ferns"), _command("todo.md")),
                {"todo.md": "- water the ferns\n- pay rent\n", "notes.txt": _NOTES},
            ),
            Wording(
                "What does the file poem.txt say?",
                any_of(shows("silver owl"), _command("poem.txt")),
                {"poem.txt": "A silver owl\nsat on a wall.\n", "a.txt": "a\n"},
            ),
            Wording(
                "cat logs/today.log",
                any_of(shows("disk is full"), _command("logs/today.log")),
                {"logs/today.log": "08:00 start\n08:05 disk is full\n", "notes.txt": _NOTES},
            ),
        ),
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
        "run_command",
        KIND,
        (
            Wording(
                "Run the command `make test`.", _command("make test"), {"Makefile": "test:\n\techo ok\n"}
            ),
            Wording("Please execute: python --version", _command("python", "--version")),
            Wording("run `git status` in this folder", _command("git status"), {"notes.txt": _NOTES}),
        ),
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
