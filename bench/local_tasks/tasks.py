"""The tasks: a folder with made-up files, a request in somebody's words, and a check of what came out.

Everything is drawn from a seeded generator: try N of a kind is the same folder and the same words everywhere,
and another seed gives other names, texts and wordings.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "Outcome", "Task", "tasks"]


@dataclass(frozen=True)
class Outcome:
    """What an agent did with a task: its answer, the folder afterwards, and the tools that it called, in order."""

    answer: str
    folder: Path
    calls: Sequence[str]


@dataclass(frozen=True)
class Task:
    """One try. `check` returns what is wrong with an outcome, or "" for a right one."""

    kind: str
    request: str
    files: dict[str, str]
    check: Callable[[Outcome], str]


WORDS = [
    "amber",
    "anchor",
    "apple",
    "autumn",
    "bakery",
    "balcony",
    "basket",
    "beacon",
    "bicycle",
    "blanket",
    "bottle",
    "branch",
    "breeze",
    "bridge",
    "bucket",
    "butter",
    "cabin",
    "candle",
    "canyon",
    "carpet",
    "castle",
    "cellar",
    "cherry",
    "circle",
    "cloud",
    "coffee",
    "copper",
    "corner",
    "cotton",
    "cousin",
    "crystal",
    "curtain",
    "desert",
    "dinner",
    "engine",
    "evening",
    "feather",
    "fiddle",
    "finger",
    "flower",
    "forest",
    "fountain",
    "garden",
    "ginger",
    "glacier",
    "hammer",
    "harbour",
    "harvest",
    "helmet",
    "hollow",
    "island",
    "jacket",
    "journey",
    "kettle",
    "kitchen",
    "ladder",
    "lantern",
    "lemon",
    "letter",
    "library",
    "marble",
    "market",
    "meadow",
    "mirror",
    "morning",
    "mountain",
    "needle",
    "notebook",
    "ocean",
    "orange",
    "orchard",
    "packet",
    "parcel",
    "pencil",
    "pepper",
    "pillow",
    "planet",
    "pocket",
    "pottery",
    "puzzle",
    "quarry",
    "rabbit",
    "railway",
    "ribbon",
    "river",
    "saddle",
    "sailor",
    "season",
    "shadow",
    "shelter",
    "silver",
    "station",
    "stone",
    "summer",
    "table",
    "temple",
    "thunder",
    "ticket",
    "timber",
    "tunnel",
    "umbrella",
    "valley",
    "velvet",
    "village",
    "violin",
    "walnut",
    "water",
    "whistle",
    "window",
    "winter",
    "wooden",
    "yellow",
]

RARE = [
    "zebra",
    "flamingo",
    "quasar",
    "marzipan",
    "obelisk",
    "kangaroo",
    "sapphire",
    "tornado",
    "pelican",
    "accordion",
    "volcano",
    "truffle",
    "platypus",
    "cinnamon",
    "hurricane",
    "gondola",
    "mongoose",
    "pineapple",
    "tarantula",
    "origami",
    "saxophone",
    "nebula",
    "crocodile",
    "meteor",
]

NAMES = [
    "notes.txt",
    "report.md",
    "plan.txt",
    "summary.txt",
    "draft.md",
    "journal.txt",
    "ideas.md",
    "inventory.csv",
    "log.txt",
    "agenda.md",
    "letter.txt",
    "recipes.md",
    "guide.txt",
    "members.csv",
    "minutes.txt",
    "travel.md",
    "budget.csv",
    "index.html",
    "poem.txt",
    "script.py",
]


def _sentence(rng: random.Random) -> str:
    words = rng.choices(WORDS, k=rng.randint(6, 11))
    return f"{words[0].capitalize()} {' '.join(words[1:])}."


def _prose(rng: random.Random, lines: int) -> str:
    return "".join(_sentence(rng) + "\n" for _ in range(lines))


def _other_files(rng: random.Random, count: int, *, without: Sequence[str] = ()) -> dict[str, str]:
    names = rng.sample([n for n in NAMES if n not in without], count)
    return {name: _prose(rng, rng.randint(2, 6)) for name in names}


def _says(answer: str, value: str) -> bool:
    """Whether the answer holds the value, as a word of its own."""
    return re.search(rf"(?<![\w.]){re.escape(value)}(?![\w]|\.\d)", answer, re.IGNORECASE) is not None


def _named(answer: str, files: Sequence[str]) -> list[str]:
    """The files that an answer names, in the order in which it does."""
    found = {name: answer.find(Path(name).name) for name in files}
    return sorted((n for n, at in found.items() if at >= 0), key=lambda n: found[n])


# (a) Report a value from a named file.

FORMATS: dict[str, Callable[[dict[str, str]], str]] = {
    "ini": lambda v: "[main]\n" + "".join(f"{k} = {x}\n" for k, x in v.items()),
    "env": lambda v: "".join(f"{k.upper()}={x}\n" for k, x in v.items()),
    "yaml": lambda v: "service:\n" + "".join(f"  {k}: {x}\n" for k, x in v.items()),
    "json": lambda v: "{\n" + ",\n".join(f'  "{k}": "{x}"' for k, x in v.items()) + "\n}\n",
    "toml": lambda v: "[service]\n" + "".join(f'{k} = "{x}"\n' for k, x in v.items()),
    "txt": lambda v: "".join(f"The {k} is {x}.\n" for k, x in v.items()),
    "md": lambda v: "# Facts\n\n" + "".join(f"- **{k}**: {x}\n" for k, x in v.items()),
    "py": lambda v: '"""Settings."""\n\n' + "".join(f'{k.upper()} = "{x}"\n' for k, x in v.items()),
}

STEMS = [
    "settings",
    "config",
    "app",
    "server",
    "deploy",
    "service",
    "defaults",
    "project",
    "options",
    "site",
    "info",
    "facts",
]

VALUES: dict[str, Callable[[random.Random], str]] = {
    "port": lambda r: str(r.randint(1025, 65000)),
    "host": lambda r: f"{r.choice(WORDS)}.example.org",
    "timeout": lambda r: str(r.randint(3, 900)),
    "version": lambda r: f"{r.randint(0, 9)}.{r.randint(0, 20)}.{r.randint(0, 20)}",
    "owner": lambda r: r.choice(["Maria", "Kofi", "Anouk", "Ravi", "Ingrid", "Tomas", "Yuki", "Leila"]),
    "city": lambda r: r.choice(["Lisbon", "Osaka", "Bergen", "Nairobi", "Quito", "Gdansk", "Perth"]),
    "color": lambda r: r.choice(["teal", "crimson", "ivory", "magenta", "olive", "indigo"]),
    "deadline": lambda r: f"2027-0{r.randint(1, 9)}-{r.randint(10, 28)}",
    "password_length": lambda r: str(r.randint(8, 64)),
    "workers": lambda r: str(r.randint(2, 99)),
    "region": lambda r: r.choice(["eu-north", "us-east", "ap-south", "sa-west"]),
}

REPORT = (
    "What is the {key} in {file}?",
    "Which {key} does {file} name?",
    "Look into {file} and tell me the {key}.",
    "Please read {file} and report the value of {key}.",
    "what's the {key} set in {file}",
    "I need the {key} from {file}.",
    "Tell me which {key} is given in the file {file}.",
    "Open {file}. What {key} is written there?",
    "Can you check {file} for the {key}?",
    "{file}: what is the {key}?",
    "According to {file}, what is the {key}?",
    "Give me the {key} that stands in {file}, please.",
    "Read the {key} out of {file} for me.",
    "How is {key} set in {file}?",
    "Find the {key} in {file} and print it.",
)


def report(rng: random.Random, wording: str) -> Task:
    """A value from a named file, among other values and other files."""
    ending = rng.choice(list(FORMATS))
    stem = rng.choice(STEMS)
    folder = rng.choice(["", "", "", "conf/", "etc/"])
    file = f"{folder}{'.env' if ending == 'env' else f'{stem}.{ending}'}"
    keys = rng.sample(list(VALUES), 5)
    values = {key: VALUES[key](rng) for key in keys}
    key = rng.choice(keys)
    files = {file: FORMATS[ending](values), **_other_files(rng, rng.randint(1, 4))}
    spoken = key.replace("_", " ") if rng.random() < 0.5 else key

    def check(outcome: Outcome) -> str:
        return "" if _says(outcome.answer, values[key]) else f"the answer does not say {values[key]!r}"

    return Task("report", wording.format(key=spoken, file=file), files, check)


# (b) Create a file with given text.

CREATE = (
    'Create a file {file} with the text "{text}"',
    "Create a file called {file} that contains: {text}",
    'Write "{text}" to {file}.',
    "Please make a new file {file} with this content: {text}",
    'Save the text "{text}" in a file named {file}.',
    'Put "{text}" into {file}',
    "I want a file {file} with the text {text}",
    'Add a file {file} to this folder. It should contain "{text}".',
    "Make {file}, content: {text}",
    "new file {file} with '{text}' in it please",
    'Could you store "{text}" as {file}?',
    "Generate the file {file} holding exactly this line: {text}",
    "In a new file {file}, write: {text}",
    'Write a file {file} whose only line is "{text}".',
    "Create {file} containing the words {text}",
)

TEXTS = (
    "Hello, world!",
    "Buy milk, eggs and {a}",
    "The {a} meets the {b} at {n} o'clock",
    "{a} {b} {c}",
    "remember the {a}",
    "{n} {a}s, {m} {b}s",
    "Grüße aus Köln",
    "{a}: {n}",
    "Dear {b}, thank you for the {a}.",
    "Don't open the {a} before {n}:30",
    "{a}-{b} / {c}",
    "print({n} + {m})",
)

NEW_NAMES = [
    "hello.txt",
    "shopping.txt",
    "todo.md",
    "greeting.txt",
    "memo.txt",
    "data/out.txt",
    "result.csv",
    "readme.md",
    "note1.txt",
    "a.txt",
    "message.log",
    "welcome.html",
    "reminders.txt",
    "docs/intro.md",
    "quote.txt",
]


def create(rng: random.Random, wording: str) -> Task:
    """A file with exactly the text that was given."""
    file = rng.choice(NEW_NAMES)
    a, b, c = rng.sample(WORDS, 3)
    text = rng.choice(TEXTS).format(a=a, b=b, c=c, n=rng.randint(2, 12), m=rng.randint(13, 90))
    files = _other_files(rng, rng.randint(0, 3))

    def check(outcome: Outcome) -> str:
        path = outcome.folder / file
        if not path.is_file():
            return f"there is no {file!r}"
        if path.read_text("utf-8").strip() != text:
            return f"{file!r} holds {path.read_text('utf-8')!r}"
        changed = [n for n, t in files.items() if (outcome.folder / n).read_text("utf-8") != t]
        return f"changed {changed}" if changed else ""

    return Task("create", wording.format(file=file, text=text), files, check)


# (c) Name the largest file, and what is in it.

LARGEST = (
    "Which file in this folder is the largest, and what is in it?",
    "What is the largest file here?",
    "Name the biggest file in this folder.",
    "which file is biggest",
    "Find the largest file in the current directory and tell me what it is about.",
    "Tell me the name of the largest file in this folder.",
    "Of all files here, which one takes the most space?",
    "What's the biggest file in this directory, and what does it contain?",
    "Please find out which file is the largest.",
    "Show me the largest file's name.",
    "I'm looking for the biggest file in here. Which one is it?",
    "Largest file in this folder?",
    "Which is the largest file, and what does it say?",
    "Look at the files in this folder: which one is the largest?",
    "Determine the file with the biggest size in the workspace.",
)


def largest(rng: random.Random, wording: str) -> Task:
    """The name of the largest file; where the request asks for it, what is in it too."""
    files = _other_files(rng, rng.randint(3, 7))
    name = rng.choice(list(files))
    topic = rng.sample(RARE, 2)
    files[name] = f"All about {topic[0]} and {topic[1]}.\n" + _prose(rng, rng.randint(9, 40))
    if rng.random() < 0.4:
        files["old/archive.txt" if rng.random() < 0.5 else "src/main.py"] = _prose(rng, 3)
    wants_content = any(w in wording for w in ("what is in", "about", "contain", "say"))

    def check(outcome: Outcome) -> str:
        named = _named(outcome.answer, list(files))
        if not named or named[0] != name:
            return f"names {named}, not {name!r}"
        if wants_content and not any(
            w in outcome.answer.lower() for w in [*topic, *_longer_words(files[name])]
        ):
            return f"names {name!r} but nothing of what is in it"
        return ""

    return Task("largest", wording, files, check)


def _longer_words(text: str) -> list[str]:
    return [w for w in re.findall(r"[a-z]{5,}", text.lower()) if w in WORDS]


# (d) Find which file holds a word.

SEARCH = (
    "Which file contains the word {word}?",
    'Find the file that mentions "{word}".',
    "In which file does the word {word} occur?",
    "where is '{word}' written?",
    "Which of these files holds the word {word}",
    "Search this folder for {word} and tell me the file name.",
    "I wrote something about {word} somewhere. In which file?",
    "Find out which file has the word {word} in it.",
    "Which file talks about {word}?",
    'Please look for "{word}" in all files and name the file.',
    "What file is the word {word} in?",
    "There is a file with the word {word}. Which?",
    "Locate {word} in the files here.",
    "Tell me the name of the file in which {word} appears.",
    "grep for {word}: which file?",
)


def search(rng: random.Random, wording: str) -> Task:
    """The one file that holds a word."""
    files = _other_files(rng, rng.randint(3, 7))
    if rng.random() < 0.4:
        files["chapters/one.txt"] = _prose(rng, 4)
    name = rng.choice(list(files))
    word, decoy = rng.sample(RARE, 2)
    files[name] = _plant(rng, files[name], word)
    other = rng.choice([n for n in files if n != name])
    files[other] = _plant(rng, files[other], decoy)

    def check(outcome: Outcome) -> str:
        named = _named(outcome.answer, list(files))
        return "" if named == [name] else f"names {named}, not {name!r}"

    return Task("search", wording.format(word=word), files, check)


def _plant(rng: random.Random, text: str, word: str) -> str:
    lines = text.splitlines()
    lines.insert(rng.randint(0, len(lines)), f"{rng.choice(WORDS).capitalize()} {word} {rng.choice(WORDS)}.")
    return "\n".join(lines) + "\n"


# (e) Plain questions: an answer, and no tool.

PLAIN: tuple[tuple[str, str], ...] = (
    ("What is {n}+{m}?", r"{sum}"),
    ("hello", r"\w"),
    ("Hi there!", r"\w"),
    ("What is the capital of France?", r"Paris"),
    ("How many days are in a week?", r"7|seven"),
    ("Thanks, that was all.", r"\w"),
    ("Translate 'good morning' into German.", r"[Gg]uten\s+[Mm]orgen"),
    ("What can you do?", r"\w"),
    ("Which planet do we live on?", r"[Ee]arth"),
    ("What does the abbreviation CPU stand for?", r"[Cc]entral"),
    ("Is the number {n} even or odd?", r"{parity}"),
    ("good evening", r"\w"),
    ("Explain in one sentence what a variable is.", r"\w"),
    ("What colour is the sky on a clear day?", r"[Bb]lue"),
    ("Say something nice.", r"\w"),
)


def plain(rng: random.Random, wording: str) -> Task:
    """A question that needs no file."""
    n, m = rng.randint(2, 12), rng.randint(2, 12)
    pattern = dict(PLAIN)[wording].format(sum=n + m, parity="even" if n % 2 == 0 else "odd")
    files = _other_files(rng, rng.randint(1, 4))

    def check(outcome: Outcome) -> str:
        if outcome.calls:
            return f"called {', '.join(outcome.calls)}"
        return "" if re.search(pattern, outcome.answer) else f"the answer does not match {pattern!r}"

    return Task("plain", wording.format(n=n, m=m), files, check)


KINDS: dict[str, tuple[Callable[[random.Random, str], Task], Sequence[str]]] = {
    "report": (report, REPORT),
    "create": (create, CREATE),
    "largest": (largest, LARGEST),
    "search": (search, SEARCH),
    "plain": (plain, tuple(wording for wording, _ in PLAIN)),
}


def tasks(kind: str, count: int, *, seed: int = 0) -> list[Task]:
    """The first `count` tries of a kind; each wording is used once before one is used again."""
    make, wordings = KINDS[kind]
    made = []
    for number in range(count):
        rng = random.Random(f"{kind}/{seed}/{number}")
        made.append(make(rng, wordings[number % len(wordings)]))
    return made
