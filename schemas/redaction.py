"""Secrets do not get into texts: what this process knows to be secret, and whatever looks like a URL's password.

Rules
1. Whoever reads a secret calls `keep_secret` once, before anything can go wrong with it. The parser of broker URLs
   does that.
2. `redacted` replaces each known secret, also as a URL writes it, and the password of everything that has the form
   scheme://user:password@host. Every FedmqError redacts its text, and so does every log line of ours.
3. A known secret of fewer than 8 characters is replaced in URLs alone: "guest" is also a user, and "pw" is in many
   words.
"""

from __future__ import annotations

import re
from urllib.parse import quote

HIDDEN = "***"
LEAST_CHARS = 8
"""Shortest secret that is replaced wherever it stands."""
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,19}://"
_IN_URL = re.compile(rf"((?<![A-Za-z0-9+.-]){_SCHEME}[^\s:/@'\"]*):(?!PASSWORD@)(?:(?!{_SCHEME})[^\s'\"])*@")
"""A URL up to the last @ of its word, because a password may hold an @ that nobody encoded. It takes linear time. Our
own advice writes the word PASSWORD there."""
_secrets: set[str] = set()


def keep_secret(secret: str) -> None:
    """Never show this text again, in any of its written forms. Any thread may call it."""
    if len(secret) >= LEAST_CHARS:
        for form in (secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]):
            _secrets.add(form)


def redacted(text: str) -> str:
    """Return the text without secrets."""
    if "://" in text:
        text = _IN_URL.sub(rf"\1:{HIDDEN}@", text)
    for secret in tuple(_secrets):
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text
