"""Keys in text: blanked whole and in part, in every form; nothing else is."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from minillm.redact import blanked, holds

KEY = "sk-Ab/9+x_7Qz=~0123"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"key {KEY}.", "key ***."),
        (f"{KEY} and {KEY.swapcase()}", "*** and ***"),
        (f"?key={quote(KEY, safe='')}&a=1", "?key=***&a=1"),
        (f"hex {KEY.encode().hex()}", "hex ***"),
        (f"cut {KEY[:9]}", "cut ***"),
        (f"masked {KEY[:4]}...{KEY[-4:]}", f"masked {KEY[:4]}...{KEY[-4:]}"),
        ("8 7\nno key here", "8 7\nno key here"),
        ("İ" * 3 + KEY, "İ" * 3 + "***"),
        ("", ""),
    ],
)
def test_forms_of_a_key(text: str, left: str) -> None:
    assert blanked(text, KEY) == left


@pytest.mark.parametrize("before", ["", ":", "me:", "user:", "Bearer ", "Basic x:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_wherever_the_key_begins(before: str, encode) -> None:
    """All but the characters that also hold bits of what precedes and follows."""
    text = encode(f"{before}{KEY}!".encode()).decode()
    left = blanked(text, KEY)
    bare = encode(before.encode()).decode().rstrip("=")
    assert left.startswith(bare[: len(before) * 8 // 6]) and "***" in left
    assert len(left.replace("***", "")) <= len(bare) + 4
    assert blanked(text.lower(), KEY).count("***") == 1


def test_a_dummy_key_is_blanked_only_as_a_whole() -> None:
    assert blanked("empty emp 8 7", "EMPTY") == "*** emp 8 7"
    assert blanked("8 7", "") == "8 7"


def test_where_a_key_is_refused() -> None:
    assert holds(f"https://host/{KEY.upper()}/v1", KEY) and holds(quote(KEY, safe=""), KEY)
    assert not holds("https://host/v1", KEY) and not holds("anything", "")
