"""Tasks of several steps with files: look and tell, look and change, several files, files and other tools."""

from __future__ import annotations

import json

from stigmer.modelbench.checks import both, looked, made, names_file, says, shows
from stigmer.modelbench.task import Check, Outcome, Task, Wording

__all__ = ["TASKS"]

KIND = "several_steps"

_LONG = "The harbour was quiet, and the boats lay close together.\n" * 14
_SHORT = "bread\nbutter\n"


def _anyway(outcome: Outcome) -> str:
    """The files are what counts; they have been looked at before."""
    return ""


def _tells(request: str, files: dict[str, str], *answers: str, never: str = "") -> Wording:
    """A fact that stands in the files: read, not guessed, because nobody could guess it."""
    return Wording(request, says(*answers, never=never), files)


def _compares(
    request: str, files: dict[str, str], *answers: str, seen: tuple[str, str], never: str = ""
) -> Wording:
    """An answer that could be guessed: what it follows from must have been seen."""
    return Wording(request, both(*map(shows, seen), says(*answers, never=never)), files)


def _names(request: str, files: dict[str, str], name: str, *, only: bool = True) -> Wording:
    return Wording(request, both(looked, names_file(name, files, only=only)), files)


def _changes(request: str, files: dict[str, str], changes: dict[str, str], check: Check = _anyway) -> Wording:
    return Wording(request, check, files, changes)


def _same_lines(path: str, *lines: str) -> Check:
    """The file holds these lines in any order."""

    def check(outcome: Outcome) -> str:
        if path not in outcome.files:
            return f"there is no {path!r}"
        found = [line.strip(" -*\t,") for line in outcome.files[path].strip().splitlines()]
        names = [line.rsplit("/", 1)[-1] for line in found]  # A file may be named with its folder.
        return "" if sorted(names) == sorted(lines) else f"{path!r} holds {outcome.files[path]!r}"

    return check


def _others_untouched(files: dict[str, str]) -> Check:
    def check(outcome: Outcome) -> str:
        changed = [path for path, text in files.items() if outcome.files.get(path) != text]
        return f"changed {', '.join(changed)}" if changed else ""

    return check


def _listed(request: str, files: dict[str, str], path: str, *lines: str) -> Wording:
    return Wording(request, both(_same_lines(path, *lines), _others_untouched(files)), files, changes=None)


def _servers(count: int) -> str:
    return (
        json.dumps({"servers": [{"name": f"node{n}", "port": 7000 + n} for n in range(count)]}, indent=1)
        + "\n"
    )


TASKS: tuple[Task, ...] = (
    Task(
        "report_value",
        KIND,
        (
            _tells(
                "What is the timeout in server.ini?",
                {"server.ini": "[http]\nhost = elm\ntimeout = 47\nworkers = 9\n", "a.txt": _SHORT},
                "47",
            ),
            _tells(
                "Look into etc/build.json and tell me the version.",
                {
                    "etc/build.json": '{"name": "kestrel", "version": "3.14.2", "lines": 800}\n',
                    "a.txt": _SHORT,
                },
                r"3\.14\.2",
            ),
            _tells(
                "who is the owner named in team.yaml?",
                {"team.yaml": "team: blue\nowner: Anouk\ncity: Bergen\n", "a.txt": _SHORT},
                "Anouk",
            ),
        ),
    ),
    Task(
        "copy_value",
        KIND,
        (
            _changes(
                "Read the version in app.toml and write only that version into VERSION.txt",
                {"app.toml": 'name = "heron"\nversion = "1.8.0"\n', "a.txt": _SHORT},
                {"VERSION.txt": "1.8.0"},
            ),
            _changes(
                "Put the email address from contact.txt into a new file email.txt, nothing else.",
                {"contact.txt": "Leila Haddad\nRoom 12\nleila@example.org\n"},
                {"email.txt": "leila@example.org"},
            ),
            _changes(
                "Take the total from bill.txt and save just the number in total.txt.",
                {"bill.txt": "tea 4\ncake 9\ntotal: 13\n", "a.txt": _SHORT},
                {"total.txt": "13"},
            ),
        ),
    ),
    Task(
        "largest_file",
        KIND,
        (
            _names(
                "What is the largest file here?",
                {"harbour.txt": _LONG, "shop.txt": _SHORT, "b.csv": "x\n1\n"},
                "harbour.txt",
                only=False,
            ),
            _names(
                "Which file in the folder logs is the biggest?",
                {"logs/may.log": _LONG, "logs/june.log": _SHORT, "logs/july.log": "ok\n"},
                "may.log",
                only=False,
            ),
            _names(
                "Name the smallest file in this folder.",
                {"quay.txt": _LONG, "shop.txt": _SHORT * 4, "tiny.txt": "x\n"},
                "tiny.txt",
                only=False,
            ),
        ),
    ),
    Task(
        "change_setting",
        KIND,
        (
            _changes(
                "Set the port in server.ini to 9090.",
                {"server.ini": "[http]\nhost = elm\nport = 8080\n", "a.txt": _SHORT},
                {"server.ini": "[http]\nhost = elm\nport = 9090\n"},
            ),
            _changes(
                "In config/app.json change the language to fr.",
                {"config/app.json": '{"theme": "dark", "language": "en"}\n', "a.txt": _SHORT},
                {"config/app.json": '{"theme": "dark", "language": "fr"}\n'},
            ),
            _changes(
                "The meeting in plan.txt is at 16:00 now. Correct the file.",
                {"plan.txt": "Topic: budget\nMeeting at 14:00\nRoom 3\n"},
                {"plan.txt": "Topic: budget\nMeeting at 16:00\nRoom 3\n"},
            ),
        ),
    ),
    Task(
        "which_file_has",
        KIND,
        (
            _names(
                "Which file talks about penguins?",
                {
                    "zoo.txt": "The penguins eat at noon.\n",
                    "park.txt": "The swings are red.\n",
                    "a.txt": _SHORT,
                },
                "zoo.txt",
            ),
            _names(
                "I wrote something about a compass somewhere. In which file?",
                {
                    "trip.md": "Pack the compass.\n",
                    "home.md": "Water the ferns.\n",
                    "work.md": "Call Omar.\n",
                },
                "trip.md",
            ),
            _names(
                "Tell me the name of the file in which the word saffron appears.",
                {"rice.txt": "Rice with saffron.\n", "soup.txt": "Soup with leek.\n", "cake.txt": "Cake.\n"},
                "rice.txt",
            ),
        ),
    ),
    Task(
        "fix_spelling",
        KIND,
        (
            _changes(
                "Fix the spelling mistake 'recieve' in letter.txt.",
                {"letter.txt": "We recieve guests\nevery Friday.\n", "a.txt": _SHORT},
                {"letter.txt": "We receive guests\nevery Friday.\n"},
            ),
            _changes(
                "Rename the variable cnt to count in sum.py",
                {"sum.py": "cnt = 7\nprint('done')\n"},
                {"sum.py": "count = 7\nprint('done')\n"},
            ),
            _changes(
                "In README.md the project is called Falcn. It should be Falcon. Please correct it.",
                {"README.md": "# Falcn\n\nA small tool.\n", "a.txt": _SHORT},
                {"README.md": "# Falcon\n\nA small tool.\n"},
            ),
        ),
    ),
    Task(
        "two_new_files",
        KIND,
        (
            _changes(
                'Create two files: a.txt with the text "north" and b.txt with the text "south".',
                {},
                {"a.txt": "north", "b.txt": "south"},
            ),
            _changes(
                "Make a file ann.md that says Hello Ann, and another file bob.md that says Hello Bob",
                {"notes.txt": _SHORT},
                {"ann.md": "Hello Ann", "bob.md": "Hello Bob"},
            ),
            _changes(
                "Write 1 into one.txt, then write 2 into two.txt.", {}, {"one.txt": "1", "two.txt": "2"}
            ),
        ),
    ),
    Task(
        "count_entries",
        KIND,
        (
            _tells("How many servers are listed in hosts.json?", {"hosts.json": _servers(4)}, "4", "four"),
            _tells(
                "How many tasks in todo.md are not done yet ([ ])?",
                {"todo.md": "- [x] rent\n- [ ] stamps\n- [ ] plants\n- [x] bread\n"},
                "2",
                "two",
            ),
            _tells(
                "Count the names in team.txt.",
                {"team.txt": "Ann\nOmar\nPriya\nKofi\nLeila\n", "a.txt": _SHORT},
                "5",
                "five",
            ),
        ),
    ),
    Task(
        "find_then_change",
        KIND,
        (
            _changes(
                "Find the file that mentions the lighthouse, and replace blue by green in it.",
                {"coast.txt": "A lighthouse.\nIts door is blue.\n", "town.txt": "The church is white.\n"},
                {"coast.txt": "A lighthouse.\nIts door is green.\n"},
            ),
            _changes(
                "One of the files contains the word passport. Change Tuesday to Friday there.",
                {"trip.txt": "Bring the passport.\nWe leave on Tuesday.\n", "home.txt": "Lock the door.\n"},
                {"trip.txt": "Bring the passport.\nWe leave on Friday.\n"},
            ),
            _changes(
                "Search for the file with the line 'debug = on' and switch debug off there (debug = off).",
                {"web.conf": "name = web\ndebug = on\n", "db.conf": "name = db\ntrace = no\n"},
                {"web.conf": "name = web\ndebug = off\n"},
            ),
        ),
    ),
    Task(
        "compare_files",
        KIND,
        (
            _compares(
                "Who has the higher score, the one in ann.txt or the one in bob.txt? Answer with the name.",
                {"ann.txt": "name: Ann\nscore: 71\n", "bob.txt": "name: Bob\nscore: 88\n"},
                "bob",
                seen=("71", "88"),
                never=r"ann has (a|the) higher",
            ),
            _compares(
                "Which is cheaper, the offer in north.txt or the offer in south.txt?",
                {"north.txt": "Offer: 420 euros\n", "south.txt": "Offer: 385 euros\n"},
                "south",
                seen=("420", "385"),
                never=r"(offer (in|from) )?north(\.txt)? (is|was) (the )?cheaper",
            ),
            _compares(
                "Compare old.txt and new.txt: which word is different in the new one?",
                {"old.txt": "The fox is red.\n", "new.txt": "The fox is grey.\n"},
                "grey",
                seen=("red", "grey"),
            ),
        ),
    ),
    Task(
        "list_into_file",
        KIND,
        (
            _listed(
                "Write the names of the files in the folder recipes into list.txt, one name per line.",
                {"recipes/soup.txt": "leek\n", "recipes/bread.txt": "flour\n"},
                "list.txt",
                "soup.txt",
                "bread.txt",
            ),
            _listed(
                "Collect the first lines of one.txt and two.txt in both.txt, each on its own line.",
                {"one.txt": "amber\nx\n", "two.txt": "birch\ny\n"},
                "both.txt",
                "amber",
                "birch",
            ),
            _listed(
                "Save the three colours that colours.json names in colours.txt, one per line.",
                {"colours.json": '["teal", "ivory", "plum"]\n'},
                "colours.txt",
                "teal",
                "ivory",
                "plum",
            ),
        ),
    ),
    Task(
        "other_languages",
        KIND,
        (
            _tells(
                "Lies rechnung.txt: Wie hoch ist der Betrag?",
                {"rechnung.txt": "Kunde: Weber\nBetrag: 318 Euro\n", "a.txt": _SHORT},
                "318",
            ),
            _changes(
                "Copie le contenu de source.txt dans copie.txt.",
                {"source.txt": "Le train part à midi.\n"},
                {"copie.txt": "Le train part à midi.\n"},
            ),
            _changes(
                "En config.ini cambia el puerto a 3000.",
                {"config.ini": "nombre = web\npuerto = 2500\n"},
                {"config.ini": "nombre = web\npuerto = 3000\n"},
            ),
        ),
    ),
    Task(
        "add_line",
        KIND,
        (
            _changes(
                "Add the line buy stamps at the end of todo.txt.",
                {"todo.txt": "water the ferns\npay rent\n"},
                {"todo.txt": "water the ferns\npay rent\nbuy stamps\n"},
            ),
            _changes(
                "Append the name Kofi to guests.txt, on a line of its own; keep the others.",
                {"guests.txt": "Ann\nOmar\n", "a.txt": _SHORT},
                {"guests.txt": "Ann\nOmar\nKofi\n"},
            ),
            _changes(
                "Copy hello.py to backup/hello.py",
                {"hello.py": "print('hello')\n"},
                {"backup/hello.py": "print('hello')\n"},
            ),
        ),
    ),
    Task(
        "files_and_shop",
        KIND,
        (
            Wording(
                "The file order.txt holds an order number. Cancel that order: it is the wrong item.",
                made("cancel_order", order_id="ORD-2210", reason="wrong_item"),
                {"order.txt": "Order number: ORD-2210\n"},
            ),
            Wording(
                "Look up the order number in mail.txt and tell me where that order is.",
                both(made("get_order", order_id="ORD-1042"), says("friday", "on its way")),
                {"mail.txt": "Dear shop,\nmy order is ORD-1042.\nLeila\n"},
            ),
            Wording(
                "Check how many lamps are in stock and write the number into stock.txt.",
                made("check_stock", item=lambda given: "lamp" in str(given).lower()),
                {"notes.txt": _SHORT},
                {"stock.txt": "14"},
            ),
        ),
        tools="files+shop",
    ),
)
