"""Tasks that begin with one right call on files. Nothing after the first reply counts."""

from __future__ import annotations

from stigmer.modelbench.checks import any_of, anything, both, called, looking, one_of, shows
from stigmer.modelbench.task import Check, Outcome, Task, Wording

__all__ = ["TASKS"]

KIND = "one_call"

_NOTES = "Call the plumber.\nThe key lies under the red pot.\n"
_LONG = "It was a long winter, and the river stood still.\n" * 12

_INI = "[server]\nhost = alder.example.org\nport = 8451\nworkers = 4\n"
_JSON = '{\n  "name": "atlas",\n  "region": "eu-north",\n  "retries": 5\n}\n'
_YAML = "name: kite\nowner: Ingrid\nbudget: 1200\n"


def _command(*words: str) -> Check:
    """A shell command that looks too, as far as it can be told without running it; a person is asked first."""
    return called("run_command", refused=True, command=looking(*words), timeout_seconds=anything)


def _runs(*commands: str) -> Check:
    """This command, as it was asked for; a person is asked first."""
    return called("run_command", refused=True, command=one_of(*commands), timeout_seconds=anything)


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
                any_of(shows("river.txt", "notes.txt", tool="list_files"), _command()),
                {"river.txt": _LONG, "notes.txt": _NOTES, "a.csv": "x,y\n1,2\n"},
            ),
            Wording(
                "What's the biggest file here?",
                any_of(shows("winter.md", "plan.txt", tool="list_files"), _command()),
                {"winter.md": _LONG, "plan.txt": _NOTES, "b.txt": "b\n"},
            ),
            Wording(
                "List the files of this folder with their sizes.",
                any_of(shows("story.txt", "main.py", tool="list_files"), _command()),
                {"story.txt": _LONG, "main.py": "print(1)\n"},
            ),
        ),
    ),
    Task(
        "which_file_has",
        KIND,
        (
            Wording(
                "Which file contains the word walrus?",
                any_of(shows("zoo.txt", "walrus"), _command("walrus")),
                {"zoo.txt": "A seal.\nA walrus on the ice.\n", "notes.txt": _NOTES, "a.txt": "a\n"},
            ),
            Wording(
                'Find the file that mentions "lantern".',
                any_of(shows("camp.md", "lantern"), _command("lantern")),
                {"camp.md": "Tent, rope, lantern.\n", "notes.txt": _NOTES, "list.txt": "bread\n"},
            ),
            Wording(
                "where is 'quarantine' written?",
                any_of(shows("rules.txt", "quarantine"), _command("quarantine")),
                {"rules.txt": "Rule 4: quarantine for a week.\n", "notes.txt": _NOTES},
            ),
        ),
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
        "other_languages",
        KIND,
        (
            Wording(
                "Welche Datei enthält das Wort Dachs?",
                any_of(shows("wald.txt", "Dachs"), _command("Dachs")),
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
        "run_command",
        KIND,
        (
            Wording("Run the command `make test`.", _runs("make test"), {"Makefile": "test:\n\techo ok\n"}),
            Wording("Please execute: python --version", _runs("python --version", "python3 --version")),
            Wording("run `git status` in this folder", _runs("git status"), {"notes.txt": _NOTES}),
        ),
    ),
)
