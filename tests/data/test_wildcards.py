"""Wildcards, held against hand-written lists."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hn.data.words.wildcards import MAX_DEPTH, count, draw, every, first, parse

CASES = {
    "a cat": ["a cat"],
    "": [""],
    "a {red|blue} cat": ["a red cat", "a blue cat"],
    "{a|b} {c|d}": ["a c", "a d", "b c", "b d"],
    "{a|b {c|d}|e}": ["a", "b c", "b d", "e"],
    "{{a|b}|c}": ["a", "b", "c"],
    "x{|, y}": ["x", "x, y"],
    "{a|||b}": ["a", "", "", "b"],
    "a | b ||| c": ["a | b ||| c"],
    r"\{a\|b\} {c\||\}}": ["{a|b} c|", "{a|b} }"],
    r"\(a:1.2\) \n\ {a|b}": [r"\(a:1.2\) \n\ a", r"\(a:1.2\) \n\ b"],
}


@pytest.mark.parametrize("text", CASES)
def test_every_text_is_found(text):
    parsed = parse(text)
    assert list(every(parsed)) == CASES[text]
    assert count(parsed) == len(CASES[text])
    assert first(parsed) == CASES[text][0]
    drawn = Counter(draw(parsed, Random(seed)) for seed in range(200))
    assert set(drawn) == set(CASES[text])


def test_each_alternative_has_the_same_chance():
    drawn = Counter(draw(parse("{a|b|{c|d}|a}"), Random(seed)) for seed in range(4000))
    for letter, share in {"a": 0.5, "b": 0.25, "c": 0.125, "d": 0.125}.items():
        assert drawn[letter] / 4000 == pytest.approx(share, abs=0.03)


def test_numbers_are_drawn_from_left_to_right_the_outer_first():
    class Recorded(Random):
        def choice(self, seq):
            seen.append(len(seq))
            return seq[-1]

    seen: list[int] = []
    assert draw(parse("{a|b|{c|d}} {e|f|g|h}"), Recorded()) == "d h"
    assert seen == [3, 2, 4]


FAULTS = {
    "a {b|c": "a brace is not closed",
    "{a|{b|c}": "a brace is not closed",
    "a} b": "the brace at character 1 closes nothing",
    ":}": "the brace at character 1 closes nothing",
    "{a}": "the braces that end at character 2 hold no |",
    "{{a|b}}": "the braces that end at character 6 hold no |",  # text in some trainers
    "{}": "hold no |",
    "{|" * (MAX_DEPTH + 1) + "}" * (MAX_DEPTH + 1): f"more than {MAX_DEPTH} braces",
}


@pytest.mark.parametrize("text", FAULTS)
def test_braces_that_make_no_wildcard_are_refused(text):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert FAULTS[text] in str(caught.value)


def test_the_deepest_braces_and_the_longest_caption_are_counted():
    deep = "{|" * MAX_DEPTH + "}" * MAX_DEPTH
    assert count(parse(deep)) == MAX_DEPTH + 1
    assert count(parse("{a|b}" * 13_000)) == 2**13_000


@given(st.recursive(st.text("ab ,", max_size=4), lambda inner: st.lists(inner, min_size=2)))
def test_any_nesting_is_drawn_from_its_own_list(tree):
    def written(node):
        return node if isinstance(node, str) else "{" + "|".join(map(written, node)) + "}"

    def leaves(node):
        return [node] if isinstance(node, str) else [leaf for n in node for leaf in leaves(n)]

    parsed = parse(written(tree))
    assert list(every(parsed)) == leaves(tree)
    assert draw(parsed, Random(0)) in leaves(tree)
