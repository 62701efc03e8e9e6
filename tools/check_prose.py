"""Check the mechanical half of the prose rules.

    python tools/check_prose.py [FILE or FOLDER ...]     (without an argument: the whole repository)

1. A docstring, and any other string that stands alone, begins with a verb or a noun (see `WEAK_OPENINGS`).
2. A line has at most 120 characters. Exempt are Markdown tables, code blocks that name no language, and lines of one
   word. A table cell has at most 25 words.
3. A link, a path, a module and a test name lead to something that is in the repository.
4. No package registry's host and no path of somebody's machine is named.

Each finding is one line, `file:line: what was found; what to do`. The exit status is 1 if there is one.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LINE, MAX_CELL = 120, 25
WEAK_OPENINGS = re.compile(
    r"\s*(of|what|as|those|whether|in|who|how|when|where|why|which|while|until|with|without|from|by|to|at|on|for|and"
    r"|or|but|not|its|their|it|they|also|then|so|if)\b(?!')",
    re.IGNORECASE,
)
PRAGMA = re.compile(r"\s+# (?:noqa|type:|fmt:).*")
WRAPPED = {".py", ".md", ".toml", ".sh", ".conf"}
READ = WRAPPED | {".yml", ".yaml"}
READ_NAMES = {"Makefile", "Dockerfile", "run"}
OWN_TEST = "test_check_prose.py"  # its samples break every rule
SKIPPED_FOLDERS = {"build", "shared", "broker-data", "__pycache__"}
ROOMS = ("schemas", "broker_config", "coordinator", "participant", "studies")
TREES = "|".join((*ROOMS, "fedmq", "tests", "bench", "docs", "examples", "tools"))
REGISTRIES = re.compile(  # in pieces, so that this file does not name them
    r"\b(?:pypi|pythonhosted|anaconda|npmjs|crates|docker|ghcr|gcr|quay|jfrog|golang|debian|ubuntu)"
    + r"\.(?:org|io|com)\b"
    "|artifact" + "ory"
)
MACHINE_PATHS = re.compile(r"(?<![\w.*~/-])/(?:home/(?!fedmq/)|root/|Users/|work/|tmp/|opt/(?:wheels|pypi))[\w.-]*")
REPO_PATH = re.compile(rf"(?<![\w./…<>-])(?:\.\./)*(?:{TREES})/[\w./-]*\.(?:py|md|toml|sh|json|conf|npz|png)\b(?!/)")
PAGE = re.compile(r"(?<![\w./…*<>-])[\w-]+\.md\b")
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
CODE = re.compile(r"`([^`]+)`")


def findings(path: Path, text: str, root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """Yield (line, message) for the file at `path`, whose content is `text`."""
    lines = text.splitlines()
    if path.suffix == ".py":
        yield from weak_openings(text)
    if path.suffix in WRAPPED:
        yield from long_lines(lines, markdown=path.suffix == ".md")
    for number, line in enumerate(lines, 1):
        if host := REGISTRIES.search(line):
            yield number, f"names the registry host {host[0]}; leave it to the reader's own settings"
        if place := MACHINE_PATHS.search(line):
            yield number, f"names {place[0]}, a path of one machine; use a relative path or a placeholder"
        for cited in REPO_PATH.findall(LINK.sub("", line) if path.suffix == ".md" else line):
            if not any((base / cited).exists() for base in (root, path.parent)):
                yield number, f"names {cited}, which is not there; name the file that has it now"
        for page in PAGE.findall(LINK.sub("", line)):
            if page not in pages(root):
                yield number, f"cites {page}, which is not in the repository; say the thing itself, or cite docs/"
    if path.suffix == ".md":
        yield from dead_links(path, lines)
        yield from dead_names(lines, root)


def weak_openings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the strings that stand alone (docstrings of every kind) and begin with a word of `WEAK_OPENINGS`."""
    for node in ast.walk(ast.parse(source)):
        text = getattr(node.value, "value", None) if isinstance(node, ast.Expr) else None
        if isinstance(text, str) and (word := WEAK_OPENINGS.match(text)):
            yield node.lineno, f"a docstring begins with {word[1]!r}; begin with a verb or the thing's noun"


def long_lines(lines: list[str], *, markdown: bool) -> Iterator[tuple[int, str]]:
    """Yield lines that could be wrapped and are too long, and Markdown cells of too many words."""
    for number, line, language in fenced(lines) if markdown else ((n, line, None) for n, line in enumerate(lines, 1)):
        if markdown and language is None and line.lstrip().startswith("|"):
            longest = max(len(cell.split()) for cell in line.split("|"))
            if longest > MAX_CELL:
                yield number, f"a table cell has {longest} words; keep to {MAX_CELL}, or make it a list"
        elif len(PRAGMA.sub("", line)) > MAX_LINE and language != "" and len(line.lstrip(" -*#").split()) > 1:
            yield number, f"the line has {len(line)} characters; wrap it at {MAX_LINE}"


def fenced(lines: list[str]) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line number, line, the language of the code block that it is in: "" if none is named, None outside)."""
    language: str | None = None
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("```"):
            language = line.strip().lstrip("`").strip() if language is None else None
            yield number, "", language
        else:
            yield number, line, language


def dead_links(path: Path, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield relative links whose file or heading does not exist."""
    for number, line, language in fenced(lines):
        for target in LINK.findall(CODE.sub("", line)) if language is None else ():
            if re.match(r"\w+:", target):
                continue
            name, _, anchor = target.partition("#")
            page = (path.parent / name) if name else path
            if name and not page.exists():
                yield number, f"links to {target}, which is not there; correct the link"
            elif anchor and anchor not in anchors(lines if page == path else page.read_text().splitlines()):
                yield number, f"links to the heading #{anchor}, which is not there; correct the link"


def anchors(lines: list[str]) -> set[str]:
    """Return the anchors of a page's headings, in the form that code hosts give them."""
    titles = [line.lstrip("#").strip() for _, line, language in fenced(lines) if language is None and line[:1] == "#"]
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in shown}


def dead_names(lines: list[str], root: Path) -> Iterator[tuple[int, str]]:
    """Yield modules, test files and tests that inline code names and the repository lacks; "…" matches any letters."""
    for number, line, language in fenced(lines):
        words = [word for code in CODE.findall(line) for word in code.split()] if language is None else ()
        for word in words:
            if re.fullmatch(r"(?:[\w/]+/)?test_\w+\.py", word):
                if not any(f"/{file}".endswith(f"/{word}") for file in test_files(root)):
                    yield number, f"names the test file {word}, which is not there; name the file that has it now"
            elif re.fullmatch(r"(?:test_[^\W_]+|…)_[\w…]+", word):
                if not re.search(r"\bdef " + word.replace("…", r"\w*") + r"\(", tests(root)):
                    yield number, f"names the test {word}, which nothing defines; name the test that shows it now"
            elif re.fullmatch(r"[a-z_]+\.[a-z]\w*(?:\.\w+)*", word) and not leads_somewhere(word.split("."), root):
                yield number, f"names {word}, which is neither a module nor a name in one; give its name as imported"


def leads_somewhere(parts: list[str], root: Path) -> bool:
    """Return False for a dotted name that looks like a module of the repository and is none, nor a name in one."""
    if parts[0] in ROOMS:  # a setting, such as `coordinator.url`, unless it goes on as a module does
        return len(parts) < 3 or not any((root / parts[0] / f"{parts[1]}{end}").exists() for end in ("", ".py"))
    if parts[0] not in {"fedmq", "bench", "tests"}:
        return True
    place, left = root, list(parts)
    while left and (place / left[0]).is_dir():
        place /= left.pop(0)
    if left and (place / f"{left[0]}.py").is_file():
        place /= f"{left.pop(0)}.py"
    elif left and place == root / "fedmq":  # the name of a queue
        return True
    source = place if place.is_file() else place / "__init__.py"
    return not left or (source.is_file() and re.search(rf"\b{left[0]}\b", source.read_text()) is not None)


@cache
def pages(root: Path) -> frozenset[str]:
    """Return the names of the repository's Markdown files."""
    return frozenset(Path(file).name for file in files_under(root) if file.endswith(".md"))


@cache
def test_files(root: Path) -> tuple[str, ...]:
    """Return the paths of the tests' Python files."""
    return tuple(file for file in files_under(root / "tests") if file.endswith(".py"))


@cache
def tests(root: Path) -> str:
    """Return the text of all tests."""
    return "\n".join(Path(file).read_text() for file in test_files(root))


def files_under(folder: Path) -> Iterator[str]:
    """Yield the files in a folder, except those in links, in hidden folders and in the outputs of builds and runs."""
    for place, folders, names in os.walk(folder):
        left = [name for name in folders if name[0] == "." or name.endswith(("-results", ".egg-info"))]
        if Path(place) == ROOT or "examples" in Path(place).parts:
            left += ["runs", "spool"]  # elsewhere these are rooms
        folders[:] = sorted({*folders} - {*left} - SKIPPED_FOLDERS | {".ci"} & {*folders})
        yield from (os.path.join(place, name) for name in sorted(names))


def main(arguments: Iterable[str]) -> int:
    """Print the findings in the given files and folders; return the exit status."""
    count = 0
    for given in [Path(argument) for argument in arguments] or [ROOT]:
        for file in [str(given)] if given.is_file() else files_under(given):
            path = Path(file).resolve()
            if (path.suffix in READ or path.name in READ_NAMES) and path.name != OWN_TEST:
                for line, message in findings(path, path.read_text()):
                    print(f"{os.path.relpath(path)}:{line}: {message}")
                    count += 1
    print(f"check_prose: {count or 'no'} finding{'' if count == 1 else 's'}", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
