"""Keys and tokens out of text that leaves the program: messages, logs, caches, results."""

from __future__ import annotations

import base64
from itertools import groupby
from urllib.parse import quote

# So many characters in a row of a key, in any of its forms, are blanked: others may repeat a part of it.
PART = 8
MARK = "***"


def blanked(text: str, key: str) -> str:
    """`text` without `key`, whole or in part, in any case: as it is, URL-encoded, in base64, in hex.

    A key shorter than `PART`, a dummy such as EMPTY, is blanked only as a whole.
    """
    if not key or not text:
        return text
    # Character by character: the lower case of some is longer, which would shift what is found.
    low = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    hidden = bytearray(len(text))
    for form in _forms(key):
        size = min(PART, len(form))
        parts = {form[i : i + size] for i in range(len(form) - size + 1)}
        for i in range(len(low) - size + 1):
            if low[i : i + size] in parts:
                hidden[i : i + size] = b"\1" * size
    runs = groupby(zip(text, hidden, strict=True), key=lambda pair: pair[1])
    return "".join(MARK if hide else "".join(character for character, _ in run) for hide, run in runs)


def holds(text: str, key: str) -> bool:
    """Whether the whole `key` is in `text`, in one of the forms that `blanked` knows."""
    return bool(key) and any(form in text.lower() for form in _forms(key))


def _forms(key: str) -> set[str]:
    """The key as it can be written, in lower case."""
    raw = key.encode("utf-8")
    forms = {key, quote(key, safe=""), raw.hex()}
    # What precedes the key ("Bearer ", "user:") moves it against base64's groups of three bytes.
    for shift in range(3):
        first, last = (8 * shift + 5) // 6, 8 * (shift + len(raw)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(bytes(shift) + raw).decode()[first:last])
    whole = {form.lower() for form in forms}
    # Of a short key only itself: two or three characters of base64 are in every text.
    return whole if len(key) >= PART else {key.lower()}
