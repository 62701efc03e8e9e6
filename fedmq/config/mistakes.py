"""Turn pydantic's errors into lines that a user can act on: place, value got, values allowed, and a near miss.

The allowed keys and values come from the configuration's own JSON Schema, so they never fall behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fedmq.schemas.nearest import near
from fedmq.schemas.redaction import redacted

Tree = dict[str, Any]
Origins = Mapping[tuple[str, ...], str]

_IDENTIFIER = "1 to 64 letters, digits, dots, underscores or dashes, the first a letter or a digit"
_KINDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
          "array": "a list", "object": "a table"}  # fmt: skip
_BOUNDS = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing for the user to correct."""

    place: str
    text: str

    def of(self, origins: Origins) -> Mistake:
        """Return it with the variable or flag that set the value, if one did."""
        origin = origins.get(tuple(self.place.split(".")))
        return self if origin is None else Mistake(f"{self.place} (from {origin})", self.text)


class SchemaNode:
    """A place in a JSON Schema, with the definitions that it may refer to."""

    def __init__(self, schema: Tree, definitions: Tree) -> None:
        while "$ref" in schema:
            schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        self.schema = schema
        self._definitions = definitions

    @property
    def properties(self) -> Tree:
        """Schemas by key, for a table of known keys."""
        found: Tree = self.schema.get("properties", {})
        return found

    @property
    def open(self) -> bool:
        """True if the table takes keys of any name."""
        return self.schema.get("type") == "object" and not self.properties

    def options(self) -> Iterator[SchemaNode]:
        """Yield the alternatives of a union; this node itself if it is no union."""
        branches = self.schema.get("oneOf") or self.schema.get("anyOf")
        if not branches:
            yield self
            return
        for branch in branches:
            yield from SchemaNode(branch, self._definitions).options()

    def chosen(self, data: object) -> SchemaNode:
        """Return the alternative that the data's `name` picks, else a table, else the first that is not null."""
        picked = self.picked(data)
        if picked is not None:
            return picked
        options = [o for o in self.options() if o.schema.get("type") != "null"]
        if isinstance(data, dict):
            options.sort(key=lambda option: option.schema.get("type") != "object")
        return options[0] if options else self

    def picked(self, data: object) -> SchemaNode | None:
        """Return the alternative that the data's `name` picks; None if it picks none."""
        name = data.get("name") if isinstance(data, dict) else None
        return next((o for o in self.options() if name is not None and name in o.child("name").values()), None)

    def child(self, key: str) -> SchemaNode:
        """Return the schema below `key`; an empty one if the key is unknown."""
        return SchemaNode(self.properties.get(key, {}), self._definitions)

    def values(self) -> list[Any]:
        """Return the values of an enumeration; an empty list if it is none."""
        found: list[Any] = []
        for option in self.options():
            found += option.schema.get("enum", [])
            if "const" in option.schema:
                found.append(option.schema["const"])
        return found

    def secret(self) -> bool:
        """Return True if the value must not be shown."""
        return any(option.schema.get("format") == "password" for option in self.options())

    def kind(self) -> str:
        """Return the type of value that is expected here, in words."""
        words = [_KINDS.get(str(o.schema.get("type")), "") for o in self.options() if o.schema.get("type") != "null"]
        return " or ".join(dict.fromkeys(word for word in words if word)) or "another value"


def explain(error: ValidationError, tree: Tree, schema: Tree, origins: Origins) -> list[Mistake]:
    """Return each of pydantic's complaints as a Mistake. `origins` has the keys that did not come from the file."""
    found = []
    for item in error.errors(include_url=False):
        keys, table, node, got = _locate(item["loc"], tree, SchemaNode(schema, schema.get("$defs", {})))
        if item["type"] in {"union_tag_invalid", "union_tag_not_found"}:
            keys, table, node = (*keys, "name"), node, _names(node)
            got = got.get("name", _ABSENT) if isinstance(got, dict) else got
        text = _text(
            item["type"], item.get("ctx", {}), item["msg"], keys=keys, table=table, node=node, got=got, schema=schema,
            tree=tree,
        )  # fmt: skip
        mistake = Mistake(".".join(keys) or "the file", text).of(origins)
        found.append((keys, _says_little(item["type"]), mistake))
    return [mistake for keys, little, mistake in found if not little or not _said_better(keys, found)]


def _says_little(kind: str) -> bool:
    """Return True if it only reports that a union's alternative was not met, or that a list's items are wrong."""
    return kind.endswith(("_type", "_parsing")) or kind == "too_short"


def _said_better(keys: tuple[str, ...], found: Iterable[tuple[tuple[str, ...], bool, Mistake]]) -> bool:
    """Return True if another mistake is at this place and says more, or is inside this place."""
    return any(other[: len(keys)] == keys and (len(other) > len(keys) or not little) for other, little, _ in found)


_ABSENT = object()


def _locate(
    loc: Iterable[int | str], tree: object, node: SchemaNode
) -> tuple[tuple[str, ...], SchemaNode, SchemaNode, object]:
    """Follow pydantic's location, which also names the alternatives of unions.

    Returns the keys as a person wrote them, the schema of the table around the last key, the last key's own schema, and
    the value there.
    """
    keys: list[str] = []
    table, got = node, tree
    for step in loc:
        if isinstance(got, dict) and isinstance(step, str):
            here = node.chosen(got)
            if step not in got and step not in here.properties:
                continue  # the name of an alternative
            table, node, got = here, here.child(step), got.get(step, _ABSENT)
            keys.append(step)
        elif isinstance(got, list | tuple) and isinstance(step, int) and step < len(got):
            table, node, got = node, SchemaNode(node.schema.get("items", {}), node._definitions), got[step]
            keys.append(str(step + 1))
    return tuple(keys), table, node, got


def _names(node: SchemaNode) -> SchemaNode:
    names = [value for option in node.options() for value in option.child("name").values()]
    return SchemaNode({"enum": names}, {})


def _text(
    kind: str,
    context: Mapping[str, Any],
    message: str,
    *,
    keys: tuple[str, ...],
    table: SchemaNode,
    node: SchemaNode,
    got: object,
    schema: Tree,
    tree: object,
) -> str:
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        # The value of a misspelt key beside a secret may be that secret.
        near_secret = any(table.child(key).secret() for key in table.properties)
        root = SchemaNode(schema, schema.get("$defs", {}))
        return unknown_key(keys[-1], "" if near_secret else f" (got {show(got)})", table, root, tree)
    values = node.values()
    if got is _ABSENT:
        return f"missing, expected {one_of(values) if values else node.kind()}"
    shown = "(not shown)" if node.secret() else show(got)
    if values and got not in values:
        return f"got {shown}, allowed: {one_of(values)}{near(got, values)}"
    for bound, words in _BOUNDS.items():
        if bound in context:
            return f"got {shown}, allowed: {words.format(show(context[bound]))}"
    if kind == "string_pattern_mismatch":
        return f"got {shown}, allowed: {_IDENTIFIER}"
    if kind.endswith(("_type", "_parsing", "_from_float")):
        return f"got {shown}, expected {node.kind()}"
    if isinstance(got, dict):  # a check of its own refused it, and says why
        return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"got {shown}: {message.removeprefix('Value error, ').removeprefix('Assertion failed, ')}"


def unknown_key(key: str, got: str, table: SchemaNode, root: SchemaNode, tree: object) -> str:
    """Return the text for an unknown key. It names the place that has this key, else a key of the table with nearly
    this name.

    `tree` is the file's content, which says which form of a union a table has.
    """
    allowed = sorted(table.properties)
    places = list(dict.fromkeys(path for path, keys in tables(root, tree) if key in keys))
    depth = min(map(len, places), default=0)
    words = [f"in [{'.'.join(path)}]" if path else AT_THE_TOP for path in places if len(path) == depth]
    hint = f"; it belongs {' or '.join(words)}" if 0 < len(places) <= MOST_PLACES else near(key, allowed)
    return f"unknown key{got}, allowed: {', '.join(allowed)}{hint}"


AT_THE_TOP = "at the top of the file, above all tables"
MOST_PLACES = 3
"""Largest number of tables with a key for a hint at the outermost. A key that more of them have, as `name`, says
nothing."""


def tables(
    node: SchemaNode, tree: object, path: tuple[str, ...] = (), above: tuple[Tree, ...] = ()
) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Yield the path of each table of the file, also inside other tables, with its keys.

    These are the keys of the form that the table has in `tree`, and of all forms if it is not there. A form that may
    hold itself, as a law in a law, is not looked for inside itself (`above`) unless the file has it there.
    """
    picked = node.picked(tree)
    forms = [form for form in ([picked] if picked else node.options()) if form.properties]
    if not isinstance(tree, dict):
        forms = [form for form in forms if not any(form.schema is one for one in above)]
    if not forms:
        return
    yield path, {key for form in forms for key in form.properties}
    for form in forms:
        for name in form.properties:
            inner = tree.get(name) if isinstance(tree, dict) else None
            yield from tables(form.child(name), inner, (*path, name), (*above, form.schema))


def one_of(values: Iterable[object]) -> str:
    """List values as a person would."""
    return ", ".join(show(value) for value in values)


MOST_SHOWN = 200
"""Most characters of a value that a mistake shows."""


def show(value: object) -> str:
    """Return a value as TOML writes it, without the password of a URL. Only the beginning of a long one is shown."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{_cut(redacted(value))}"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return _cut(f"[{', '.join(show(item) for item in value[:MOST_SHOWN])}]")
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"
