"""The grammar of names: separators outside brackets and quotes, values, and one sentence where a name does not read."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gate.errors import UsageError
from gate.names import has_wildcard, heads, name_problem, parse_name, split_names, split_parts


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("a, b,,c,", ["a", "b", "c"]),
        ("prompt[text='a, b'],lora", ["prompt[text='a, b']", "lora"]),
        ('prompt[text="a, b"],lora', ['prompt[text="a, b"]', "lora"]),
        ("prompt[text=':)'],lora", ["prompt[text=':)']", "lora"]),
        ("prompt[text=']['],lora", ["prompt[text='][']", "lora"]),
        (r"prompt[text='it\'s, so'],lora", [r"prompt[text='it\'s, so']", "lora"]),
        (r"prompt[text='\\'],lora", [r"prompt[text='\\']", "lora"]),
        ("prompt[text=a bird's nest],lora", ["prompt[text=a bird's nest]", "lora"]),
        ("search[stages=((1,2),(2,1))],lora", ["search[stages=((1,2),(2,1))]", "lora"]),
        ("all,!freeu,guidance-*", ["all", "!freeu", "guidance-*"]),
    ],
)
def test_lists_are_split_outside_brackets_and_quotes(text: str, names: list[str]) -> None:
    assert split_names(text) == names


def test_compositions_are_split_outside_brackets_and_quotes() -> None:
    assert split_parts("prompt[text='a+b'] + freeu[b1=1+1]") == ["prompt[text='a+b']", "freeu[b1=1+1]"]
    assert heads("prompt[text='a+b']+freeu[b1=1.1]") == ["prompt", "freeu"]
    for missing in ("+prompt", "prompt+", "a++b", ""):
        with pytest.raises(UsageError, match="is missing"):
            split_parts(missing)


def test_settings_are_literals_or_text() -> None:
    head, settings = parse_name(
        "x[a=1.5, b='p=q, [r', c=(1,2), d=plain text, e={caption} !, f=None, g={[]:1}]"
    )
    assert head == "x"
    assert settings == {
        "a": 1.5,
        "b": "p=q, [r",
        "c": (1, 2),
        "d": "plain text",
        "e": "{caption} !",
        "f": None,
        "g": "{[]:1}",
    }
    assert parse_name("x") == ("x", {})


@given(st.text(), st.text())
def test_any_text_survives_as_a_setting(a: str, b: str) -> None:
    name = f"prompt[a={a!r},b={b!r}]"
    assert split_names(f"{name},lora") == [name, "lora"]
    assert split_parts(f"freeu+{name}") == ["freeu", name]
    assert parse_name(name) == ("prompt", {"a": ast.literal_eval(repr(a)), "b": b})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("x[a='b]", "quote ' stays open"),
        ("x[a=1", "bracket stays open"),
        ("x[a=(1]", "closes nothing"),
        ("x[a=:)]", "put text with brackets in quotes"),
        ("x]", "does not read"),
        ("[a=1]", "does not read"),
        ("x[a=1]y", "does not read"),
        ("x[a=1][b=2]", "does not read"),
        ("x[a]", "needs a value"),
        ("x[a=1,a=2]", "given twice"),
    ],
)
def test_what_does_not_read_is_refused_in_a_sentence(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why.replace("(", r"\(")) as refused:
        parse_name(name)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_wildcards_count_outside_brackets() -> None:
    assert has_wildcard("guidance-*") and has_wildcard("p?") and has_wildcard("guidance-[ac]*")
    assert not has_wildcard("prompt[text='why?']") and not has_wildcard("prompt[text=*]")


@pytest.mark.parametrize(
    "name", ["a+b", "a,b", "a[b]", "a b", "", "!a", "a*", "a=b", "it's", "-a", "all", "vanilla", 7]
)
def test_names_that_no_plugin_can_have(name: object) -> None:
    assert name_problem(name)
    assert not name_problem("guidance-cfg") and not name_problem("t2i_adapter.v2")
