"""The web UI's prompt language. The first table holds what its documentation gives as examples."""

import pytest

from hn.diffusion.conditions.prompts import COMMA_REACH, Token, chunks, parse

COMMA = 9


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
    ],
)
def test_documented_examples(prompt, runs):
    assert parse(prompt) == [runs]


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        ("", []),
        ("()", []),
        ("(())[]", []),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("[[a]", [("a", 1 / 1.1 / 1.1)]),
        ("(a (b) c)", [("a ", 1.1), ("b", 1.1 * 1.1), (" c", 1.1)]),
        ("(a) (b)", [("a", 1.1), (" ", 1.0), ("b", 1.1)]),
        ("(a:2)(b:2.0)", [("ab", 2.0)]),
        # weights
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:+1.5)", [("a", 1.5)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a:0)", [("a", 0.0)]),
        ("(a:.5)(b:2.)", [("a", 0.5), ("b", 2.0)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("((a:1.5) b:2)", [("a", 3.0), (" b", 2.0)]),
        ("([a:1.5)", [("a", 1.5 / 1.1)]),
        # what is no weight is text
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:.)", [("a:.", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("(a:1e5)", [("a:1e5", 1.1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.5 b)", [("a:1.5 b", 1.1)]),
        ("[a:1.5]", [("a:1.5", 1 / 1.1)]),
        ("a:1.5)", [("a:1.5)", 1.0)]),
        ("at 12:30", [("at 12:30", 1.0)]),
        # brackets never opened, or closed by another kind, are text
        ("a) b]", [("a) b]", 1.0)]),
        ("(a] b", [("a] b", 1.1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1)]),
        # escapes
        (r"a \(b\)", [("a (b)", 1.0)]),
        (r"(a \(b\):1.5)", [("a (b)", 1.5)]),
        (r"\[a\]\\", [("[a]\\", 1.0)]),
        (r"\\(a)", [("\\", 1.0), ("a", 1.1)]),
        (r"a\b", [("ab", 1.0)]),
        ("(a\\", [("a", 1.1)]),
        ("日本 (é:1.5)\n😀", [("日本 ", 1.0), ("é", 1.5), ("\n😀", 1.0)]),
    ],
)
def test_brackets_weights_and_escapes(prompt, runs):
    assert parse(prompt) == [runs]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("a,\n BREAK\tb", [["a,"], ["b"]]),
        ("BREAK a", [[], ["a"]]),
        ("a BREAK", [["a"], []]),
        ("a BREAK BREAK b", [["a"], [], ["b"]]),
        ("a,BREAK,b", [["a,"], [",b"]]),
        ("BREAKFAST at 8", [["BREAKFAST at 8"]]),
        ("a BREAK_b dayBREAK", [["a BREAK_b dayBREAK"]]),
        ("a break Break", [["a break Break"]]),
    ],
)
def test_break_is_an_uppercase_word(prompt, sections):
    assert [[run.text for run in runs] for runs in parse(prompt)] == sections


def test_break_in_brackets_breaks_and_the_weight_goes_on():
    assert parse("(a BREAK b) c") == [[("a", 1.1)], [("b", 1.1), (" c", 1.0)]]


def _section(count, commas=()):
    """Tokens 100, 101, ... with commas at some places, each weighing as much as its place."""
    return [Token(COMMA if place in commas else 100 + place, place) for place in range(count)]


@pytest.mark.parametrize(
    ("count", "commas", "lengths"),
    [
        (0, (), [0]),
        (74, (), [74]),
        (75, (74,), [75]),
        (76, (), [75, 1]),
        (151, (), [75, 75, 1]),
        # the last comma of a full chunk, 20 places from its end at most, is the place to break
        (76, (74,), [75, 1]),
        (76, (73,), [74, 2]),
        (76, (60, 65), [66, 10]),
        (76, (55,), [56, 20]),
        (76, (54,), [75, 1]),
        (76, (70, 75), [75, 1]),  # a comma that comes next opens the next chunk
        (160, (60, 130), [61, 70, 29]),
    ],
)
def test_full_chunks_break_at_a_near_comma(count, commas, lengths):
    section = _section(count, commas)
    found = chunks([section], 75, COMMA)
    assert [len(chunk) for chunk in found] == lengths
    assert [token for chunk in found for token in chunk] == section


@pytest.mark.parametrize(
    ("counts", "lengths"),
    [
        ((0, 0), [0]),
        ((3, 0), [3]),
        ((0, 3), [0, 3]),
        ((3, 0, 2), [3, 0, 2]),
        ((75, 2), [75, 2]),
        ((76, 2), [75, 1, 2]),
        ((3, 0, 0), [3, 0]),
    ],
)
def test_each_section_begins_a_chunk(counts, lengths):
    found = chunks([_section(count) for count in counts], 75, COMMA)
    assert [len(chunk) for chunk in found] == lengths


def test_chunks_shorter_than_the_reach_end():
    """Every token a comma: nothing is lost, nothing loops."""
    section = _section(25, commas=range(25))
    found = chunks([section], COMMA_REACH // 2, COMMA)
    assert [len(chunk) for chunk in found] == [10, 10, 5]
