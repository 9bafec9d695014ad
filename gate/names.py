"""The grammar of names: `prompt`, `freeu[b1=1.2,s1=0.9]`, `prompt+freeu`, and lists of them with commas.

A separator counts outside brackets and quotes alone, so a setting may hold any text: `prompt[quality='a, b+c :)']`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from gate.errors import UsageError

RESERVED = ("all", "standard", "vanilla")  # everything, what is done unasked, and nothing
_PAIRS = {"(": ")", "[": "]", "{": "}"}


# what moves a cursor, hides or reorders text, breaks a line, or is no character at all
HOSTILE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def harmless(text: str) -> str:
    """Text of a stranger, as one line that no terminal obeys: what it would obey is spelled out (`\\x1b`)."""
    return HOSTILE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def split_names(text: str) -> list[str]:
    """A comma-separated list's names, without empty ones. Raises UsageError where a bracket or quote stays open."""
    return [name for name in _split(text, ",") if name]


def split_parts(name: str) -> list[str]:
    """The parts of a composition `a+b`, at least one. Raises UsageError where one is missing."""
    parts = _split(name, "+")
    if not all(parts):
        raise UsageError(f"A part of {name!r} is missing; write a technique on both sides of each '+'.")
    return parts


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """`head[setting=value]` as head and settings; a value that is no Python literal is text.

    name: a name without `+`. Raises UsageError where it does not read.
    """
    head, bracket, inside = name.partition("[")
    reads = head.strip() and "]" not in head and (not bracket or _closes_at_the_end(name))
    if not reads:
        raise UsageError(
            f"{name!r} does not read as a name; write NAME or NAME[setting=value,setting=value]."
        )
    head = head.strip()
    if bracket and not inside[:-1].strip():
        raise UsageError(f"The brackets of {name!r} are empty; write {head}, or {head}[setting=value].")
    settings: dict[str, Any] = {}
    for item in split_names(inside[:-1]):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise UsageError(f"Setting {item!r} of {head} needs a value: {head}[{item}=VALUE].")
        if key in settings:
            raise UsageError(f"Setting {key!r} of {head} is given twice; give it once.")
        settings[key] = _value(value)
    return head, settings


def heads(name: str) -> list[str]:
    """The names in a composition, without their settings: `prompt[quality='']+freeu` gives prompt and freeu."""
    return [parse_name(part)[0] for part in split_parts(name)]


def has_wildcard(name: str) -> bool:
    """Whether `*` or `?` stands outside brackets and quotes."""
    return any(c in "*?" and depth == 0 for _, c, depth in _scan(name))


def name_problem(name: object) -> str:
    """Why something cannot be the name of a plug-in; "" if it can."""
    if not isinstance(name, str):
        return f"the name {name!r} is no text"
    if name in RESERVED:
        return f"the name {name!r} is reserved"
    if not re.fullmatch(r"\w[\w.-]*", name):
        return f"the name {name!r} does not read on the command line; use letters, digits, '-', '_' and '.'"
    return ""


def _scan(text: str) -> Iterator[tuple[int, str, int]]:
    """(index, character, how many brackets and quotes are around it), one by one; a bracket is within itself.

    A quote after a letter or a digit is an apostrophe, as in `prompt[quality=a bird's]`.
    """
    closing: list[str] = []
    quote, before, escaped = "", "", False
    for i, c in enumerate(text):
        depth = len(closing) + bool(quote)
        if quote:
            if not escaped and c == quote:
                quote = ""
        elif c in "'\"" and not before.isalnum():
            quote, depth = c, depth + 1
        elif c in _PAIRS:
            closing.append(_PAIRS[c])
            depth += 1
        elif c in _PAIRS.values() and (not closing or closing.pop() != c):
            raise UsageError(f"{c!r} closes nothing in {text!r}; put text with brackets in quotes.")
        escaped = bool(quote) and c == "\\" and not escaped
        before = c
        yield i, c, depth
    if quote:
        raise UsageError(f"A quote {quote} stays open in {text!r}; close it.")
    if closing:
        raise UsageError(f"A bracket stays open in {text!r}; close it with {closing[-1]!r}.")


def _split(text: str, separator: str) -> list[str]:
    """What stands between separators outside brackets and quotes, stripped."""
    cuts = [i for i, c, depth in _scan(text) if c == separator and depth == 0]
    return [text[a + 1 : b].strip() for a, b in zip([-1, *cuts], [*cuts, len(text)], strict=True)]


def _closes_at_the_end(name: str) -> bool:
    """Whether the first bracket is closed by the last character and not before."""
    closed = [i for i, c, depth in _scan(name) if c == "]" and depth == 1]
    return closed[:1] == [len(name) - 1]


def _value(text: str) -> Any:
    if text in ("true", "false"):  # as YAML and JSON write them
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
