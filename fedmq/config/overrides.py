"""Settings from the environment and from `--set`, laid over the tree of the federation file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedmq.config.mistakes import Mistake, SchemaNode, Tree, show
from fedmq.config.platforms import made_by_platform
from fedmq.schemas.nearest import nearest

PREFIX = "FEDMQ_"
SHORT_NAMES = {"FEDMQ_BROKER_URL": ("broker", "url")}
COMPOSE = {"FEDMQ_BROKER_PASSWORD", "FEDMQ_COORDINATOR_PASSWORD", "FEDMQ_PARTICIPANT_PASSWORD"}
"""Passwords that docker-compose.yml reads."""
FLEET = {"FEDMQ_MANAGEMENT_URL", "FEDMQ_MANAGEMENT_CA"}
"""The way to the management API (fedmq/fleet/backend.py)."""
PROCESS_LEVEL = {"FEDMQ_TF_THREADS", "FEDMQ_FAULT", "FEDMQ_RABBITMQ_SBIN", *COMPOSE, *FLEET}
"""Variables that set no key of a federation. Other code reads them."""
MOST_MEANT = 2
"""Largest number of variables that a hint names."""
_FORM = "a key is written as in FEDMQ_RUN__CONCURRENCY."


class Overrides:
    """Writes values into the tree. It remembers the source of each, and the values that have no place."""

    def __init__(self, schema: Tree, tree: Tree) -> None:
        self._root = SchemaNode(schema, schema.get("$defs", {}))
        self._tree = tree
        self.origins: dict[tuple[str, ...], str] = {}
        self.mistakes: list[Mistake] = []

    def put(self, keys: tuple[str, ...], text: str, origin: str) -> None:
        """Set one key from text. The text is read as TOML reads a value of the key's type."""
        table: Any = self._tree
        node = self._root
        for depth, key in enumerate(keys[:-1]):
            node = node.chosen(table).child(key)
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                place = ".".join(keys[: depth + 1])
                self.mistakes.append(Mistake(origin, f"{place} is {show(table)}, not a table with keys"))
                return
        table[keys[-1]] = _value(text, node.chosen(table).child(keys[-1]))
        self.origins[keys] = origin

    def environment_names(self) -> Iterator[str]:
        """Yield each variable that names a key."""
        yield from SHORT_NAMES
        yield from _names(self._root, PREFIX)


def from_environment(overrides: Overrides, environ: Mapping[str, str]) -> None:
    """Set keys from variables: `FEDMQ_RUN__CONCURRENCY=4` sets run.concurrency.

    `FEDMQ_BROKER_URL` is short for FEDMQ_BROKER__URL. What a platform has made is passed over
    (`fedmq.config.platforms`).
    """
    names = set(overrides.environment_names())
    known = {name.split("__")[0] for name in names}
    tables = {name.rpartition("__")[0] for name in names}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in PROCESS_LEVEL:
            continue
        keys = SHORT_NAMES.get(name) or tuple(part.lower() for part in name.removeprefix(PREFIX).split("__"))
        if name in SHORT_NAMES or name.split("__")[0] in known:
            overrides.put(keys, environ[name], name)
            continue
        if made_by_platform(name, environ):
            continue
        meant = _meant(
            name.removeprefix(PREFIX), {one.removeprefix(PREFIX) for one in (names - tables) | PROCESS_LEVEL}
        )
        hint = f"did you mean {' or '.join(PREFIX + one for one in meant)}?" if meant else _FORM
        overrides.mistakes.append(Mistake(name, f"unknown environment variable; {hint}"))


def _meant(name: str, names: set[str]) -> list[str]:
    """Return the variables that were probably meant: those that set a key of this name in an outermost table, else the
    nearest one.

    All names are without PREFIX, which would make any two of them alike.
    """
    ends = sorted(one for one in names if one.endswith(f"__{name}"))
    depth = min((one.count("__") for one in ends), default=0)
    outermost = [one for one in ends if one.count("__") == depth]
    if 0 < len(outermost) <= MOST_MEANT:
        return outermost
    close = nearest(name, sorted(names))
    return [] if close is None else [close]


def from_flags(overrides: Overrides, flags: Sequence[str]) -> None:
    """Set keys from flags: `--set run.concurrency=4`."""
    for flag in flags:
        path, separator, text = flag.partition("=")
        keys = tuple(part.strip() for part in path.split("."))
        if not separator or not all(keys):
            overrides.mistakes.append(
                Mistake(f"--set {flag}", "expected key.path=value, as in --set run.concurrency=4")
            )
            continue
        overrides.put(keys, text.strip(), f"--set {path}")


def _names(node: SchemaNode, prefix: str) -> Iterator[str]:
    for option in node.options():
        for key in option.properties:
            name = prefix + key.upper()
            yield name
            yield from _names(option.child(key), f"{name}__")


def _value(text: str, node: SchemaNode) -> object:
    """Return the text itself if text is expected or TOML cannot read it, else the value that TOML reads."""
    kinds = {option.schema.get("type") for option in node.options()}
    if kinds <= {"string", "null"} and "string" in kinds:
        return text
    if kinds == {"array"} and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
