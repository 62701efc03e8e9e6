"""Texts that a peer wrote, in the form in which they are shown.

A participant chooses the detail of its decline, the names of its metrics and all that an error text quotes of its
messages. In a terminal, a control character in them could move the cursor, change the colour or write another line. So
every place that shows such a text, or hands it on, escapes it with the one function here.
"""

from __future__ import annotations


def escaped(text: str, keep: str = "") -> str:
    """Return the text with each character that does not print as an escape, as in "\\u001b[2J".

    Control characters, line ends, spaces other than the plain one, marks that turn the direction of writing, and lone
    surrogates do not print. Letters of every script do. Characters in `keep` stay. Escaping twice changes nothing more.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else escape(c) for c in text)


def escape(character: str) -> str:
    """Return one character as a JSON string has it, without the quotes."""
    short = _SHORT.get(character)
    if short is not None:
        return short
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f", '"': '\\"', "\\": "\\\\"}
