"""What a prompt can be, with every setting for captions, held against hand-written lists."""

from collections import Counter
from random import Random

import pytest
import torch
from datasets import Dataset

from hn.config import DataConfig
from hn.data.batches import Batches, Layout
from hn.data.cache.contexts import Contexts
from hn.data.pictures.columns import with_counts, with_words
from hn.data.words.folder_captions import Captioned
from hn.data.words.prompts import Prompts, check_captions
from hn.data.words.tags import Tags
from hn.diffusion.base_model import BaseModel
from hn.errors import DataError
from tests import caches

LIMIT = 2000
DRAWS = 4000
LARGE = {"shuffle_tags": True, "tag_dropout": 0.3, "caption_dropout": 0.2}


def make(captions, template=("[filewords]",), seed=0, **settings) -> Prompts:
    return Prompts(captions, list(template), "cat", DataConfig(**settings), seed)


def plain(prompts) -> list[list[str]]:
    return [prompts.plain(picture) for picture in range(len(prompts))]


def drawn(prompts, picture=0, count=400):
    return Counter(prompts.draw(picture, step, 0) for step in range(count))


def test_without_the_new_settings_the_numbers_are_drawn_as_ever():
    """Written down when these settings did not exist: a checkpoint goes on with the same."""
    template = ["[filewords]", "by [name]: [filewords]", ""]
    prompts = make([["red, large, round"], ["a,b"]], template, seed=7, **LARGE)
    assert [prompts.draw(step % 2, step, step % 3) for step in range(8)] == [
        "by cat:  round, large,red",
        "",
        "",
        "by cat: b,a",
        "",
        "",
        "by cat:  round, large,red",
        "",
    ]


def test_prefix_and_suffix_stand_about_the_caption_as_they_are_written():
    settings = {"caption_prefix": "sks, ", "caption_suffix": " by [name]"}
    prompts = make([["red, big"], [""]], ["a photo of [filewords]!", "picture"], **settings)
    assert set(drawn(prompts)) == {"a photo of sks, red, big by cat!", "picture"}
    assert set(drawn(prompts, 1)) == {"a photo of sks,  by cat!", "picture"}
    assert plain(prompts) == [["a photo of sks, red, big by cat!"], ["a photo of sks,  by cat!"]]


def test_prefix_and_suffix_are_neither_shuffled_nor_left_out_but_with_the_whole_caption():
    settings = {"caption_prefix": "sks,", "caption_suffix": ",end", **LARGE}
    found = drawn(make([["a,b,c"]], **settings))
    assert all(prompt == "" or prompt.startswith("sks,") for prompt in found)
    assert all(prompt == "" or prompt.endswith(",end") for prompt in found)
    assert found[""] == pytest.approx(80, abs=30)
    assert {"sks,c,b,a,end", "sks,b,end", "sks,,end"} <= set(found)


@pytest.mark.parametrize(
    ("settings", "caption", "parts"),
    [
        ({}, "a, b", ([], ["a", " b"], [])),
        ({"keep": 1}, "a, b,c", (["a"], [" b", "c"], [])),
        ({"keep": 5}, "a, b", (["a", " b"], [], [])),
        ({"keep": 1, "separator": ";"}, "a, b; c", (["a, b"], [" c"], [])),
        ({"keep_separator": "|||"}, "a, b ||| c, d", (["a", " b"], [" c", " d"], [])),
        ({"keep_separator": "|||"}, "a, b, |||, c", (["a", " b"], [" c"], [])),
        ({"keep_separator": "|||"}, "a|||b|||c, d|||e", (["a"], ["b"], ["c", " d", "e"])),
        ({"keep_separator": "|||"}, "|||a", ([], ["a"], [])),
        ({"keep_separator": "|||"}, "a|||", (["a"], [], [])),
        ({"keep_separator": "|||", "keep": 1}, "a, b ||| c", (["a", " b"], [" c"], [])),
        ({"keep_separator": "|||", "keep": 1}, "a, b, c", (["a"], [" b", " c"], [])),
    ],
)
def test_a_caption_falls_into_tags_that_stay_and_tags_that_are_free(settings, caption, parts):
    assert Tags(**settings).parts(caption) == parts


def test_the_first_tags_are_kept_while_others_are_shuffled():
    found = drawn(make([["a,b,c,d"]], keep_tags=2, shuffle_tags=True))
    assert set(found) == {"a,b,c,d", "a,b,d,c"}


def test_the_first_tags_are_kept_while_others_are_left_out():
    found = drawn(make([["a,b,c,d"]], keep_tags=1, tag_dropout=0.5))
    ends = ["b,c,d", "b,c", "b,d", "c,d", "b", "c", "d"]
    assert set(found) == {"a", *(f"a,{end}" for end in ends)}
    assert set(drawn(make([["a,b,c"]], keep_tags=1, tag_dropout=1.0))) == {"a"}


def test_what_stands_before_the_keep_separator_and_after_a_second_one_is_kept():
    settings = {"keep_separator": "|||", "shuffle_tags": True}
    assert set(drawn(make([["a,b|||c,d|||e"]], **settings))) == {"a,b,c,d,e", "a,b,d,c,e"}
    assert set(drawn(make([["a ||| b"]], keep_separator="|||"))) == {"a, b"}


def test_tags_are_split_and_joined_at_their_separator():
    found = drawn(make([["red, big; round"]], tag_separator=";", shuffle_tags=True))
    assert set(found) == {"red, big; round", " round;red, big"}


def test_kept_tags_draw_no_numbers():
    """The free tags of a caption are drawn as if they were all of it."""
    whole = make([["b,c,d"]], shuffle_tags=True, tag_dropout=0.4)
    kept = make([["a|||b,c,d"]], shuffle_tags=True, tag_dropout=0.4, keep_separator="|||")
    for step in range(50):
        free = whole.draw(0, step, 1)
        assert kept.draw(0, step, 1) == (f"a,{free}" if free else "a")


def test_one_of_several_captions_is_drawn():
    found = drawn(make([["one", "two", "three"]]), count=900)
    assert set(found) == {"one", "two", "three"}
    assert min(found.values()) > 240


def test_wildcards_are_drawn_in_captions_lines_prefix_and_suffix():
    prompts = make(
        [["{red|blue} cat"]],
        ["a {photo|{sketch|print}} of [filewords]"],
        wildcards=True,
        caption_prefix="{the|my} ",
        caption_suffix="{|!}",
    )
    kinds, articles = ("photo", "sketch", "print"), ("the", "my")
    expected = {
        f"a {kind} of {article} {colour} cat{end}"
        for kind in kinds
        for article in articles
        for colour in ("red", "blue")
        for end in ("", "!")
    }
    assert set(drawn(prompts, count=1000)) == expected == set(prompts.all(LIMIT)) - {""}
    assert plain(prompts) == [["a photo of the red cat"]]


def test_without_the_setting_braces_are_text():
    prompts = make([["{a|b} :}"]], ["{x|y} [filewords]"])
    assert set(drawn(prompts)) == {"{x|y} {a|b} :}"}
    assert prompts.all(LIMIT) == ["", "{x|y} {a|b} :}"]


def test_tags_that_come_of_a_wildcard_are_tags():
    settings = {"wildcards": True, "shuffle_tags": True, "keep_separator": "|||"}
    found = drawn(make([["k|||{a,b|c}"]], **settings))
    assert set(found) == {"k,a,b", "k,b,a", "k,c"}


def test_all_settings_together_give_what_they_allow():
    """prefix + kept + a subset of free tags in any order + suffix, or nothing."""
    settings = {
        "wildcards": True,
        "keep_separator": "|||",
        "caption_prefix": "sks ",
        "caption_suffix": ".",
        **LARGE,
    }
    captions = [["k|||{a|b},c", "m,n"], ["o|||p|||q"]]
    free = {"a,c", "c,a", "b,c", "c,b", "a", "b", "c"}
    first = {"sks k."} | {f"sks k,{tags}." for tags in free}
    second = {f"sks {tags}." for tags in ("m,n", "n,m", "m", "n", "")}
    prompts = make(captions, **settings)
    assert set(drawn(prompts, 0, DRAWS)) == {"", *first, *second}
    assert set(drawn(prompts, 1, DRAWS)) == {"", "sks o,p,q.", "sks o,q."}
    assert plain(prompts) == [["sks k,a,c.", "sks m,n."], ["sks o,p,q."]]


RICH = [["a {b|c}", "d"], ["{e|{f|g}}|||h", "i ||| j", "k"], ["l"], ["{m|n}"] * 2]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"wildcards": True},
        {"wildcards": True, "keep_separator": "|||", "caption_prefix": "{x|y} "},
        {"wildcards": True, "caption_dropout": 0.3, "caption_suffix": " z"},
    ],
)
def test_all_prompts_are_exactly_those_that_can_be_drawn(settings):
    prompts = make(RICH, ["[filewords]", "{by|of} [name] [filewords]", ""], **settings)
    every = prompts.all(LIMIT)
    found = {p for picture in range(len(RICH)) for p in drawn(prompts, picture, DRAWS // 2)}
    assert len(every) == len(set(every))
    assert found | {""} == set(every)
    assert {p for of_picture in plain(prompts) for p in of_picture} <= set(every)


@pytest.mark.parametrize(
    ("captions", "settings", "listed"),
    [
        ([[str(i) for i in range(LIMIT)]], {}, True),
        ([[str(i) for i in range(LIMIT + 1)]], {}, False),
        ([["{a|b}" * 10]], {"wildcards": True}, True),
        ([["{a|b}" * 11]], {"wildcards": True}, False),
        ([["{a|b}" * 13_000]], {"wildcards": True}, False),
        ([["{a|b}" * 10]], {"wildcards": True, "caption_prefix": "{c|d}"}, False),
        ([["a,b"]], {"shuffle_tags": True, "keep_tags": 1}, False),
    ],
)
def test_prompts_are_listed_up_to_the_limit(captions, settings, listed):
    every = make(captions, **settings).all(LIMIT)
    assert (every is not None) == listed
    assert every is None or len(every) <= LIMIT + 1


def test_a_bounded_number_of_variants_is_drawn_and_listed():
    settings = {"shuffle_tags": True, "tag_dropout": 0.3, "caption_dropout": 0.2}
    prompts = make(RICH, prompt_variants=3, **settings)
    every = prompts.all(3 * len(RICH))
    assert prompts.all(3 * len(RICH) - 1) is None
    for picture in range(len(RICH)):
        assert 1 <= len(set(drawn(prompts, picture, 300)) - {""}) <= 3
    assert len(every) > len(RICH) + 1
    found = {prompt for picture in range(len(RICH)) for prompt in drawn(prompts, picture, 300)}
    assert found == set(every)
    again = make(RICH, prompt_variants=3, **settings)
    assert drawn(again, 1, 50) == drawn(prompts, 1, 50)


ALL_ON = {
    "wildcards": True,
    "keep_separator": "|||",
    "caption_prefix": "{x|y} ",
    "keep_tags": 1,
    **LARGE,
}


def test_a_prompt_is_a_function_of_seed_step_and_slot():
    places = [
        (picture, step, slot) for picture in range(4) for step in range(20) for slot in (0, 5)
    ]
    forwards = [make(RICH, **ALL_ON).draw(*place) for place in places]
    prompts = make(RICH, **ALL_ON)
    shuffled = Random(0).sample(places, len(places))
    found = {place: prompts.draw(*place) for place in shuffled}
    assert [found[place] for place in places] == forwards
    assert [make(RICH, seed=1, **ALL_ON).draw(*place) for place in places] != forwards


def test_two_processes_draw_the_prompts_of_one(model, tmp_path):
    base = BaseModel.load(str(model))
    latents = caches.make(tmp_path, torch.zeros(len(RICH), 1, 2, 4, 2, 2))

    def prompts_of(**layout):
        batches = Batches(
            latents, make(RICH, **ALL_ON), Contexts(base), Layout(batch_size=2, **layout), 0
        )
        return {
            (step, slot): prompt
            for step in range(12)
            for batch in batches.at(step)
            for slot, prompt in zip(batch.slots, batch.prompts, strict=True)
        }

    alone = prompts_of(accumulation=2)
    ranks = [prompts_of(accumulation=1, rank=rank, world_size=2) for rank in (0, 1)]
    assert not ranks[0].keys() & ranks[1].keys()
    assert ranks[0] | ranks[1] == alone
    assert len(set(alone.values())) > 10


def dataset_of(captions, sources) -> Dataset:
    """A dataset without pictures."""
    nothing = Dataset.from_dict({"image": [None] * len(captions)})
    pairs = zip(captions, sources, strict=True)
    written = [Captioned(texts, source) for texts, source in pairs]
    rows = [(f"{number}.png", it, None) for number, it in enumerate(written)]
    return with_counts(with_words(nothing, rows))


def test_what_there_is_of_captions_is_said_in_a_line():
    sources = ["text file", "metadata", "file name", "none"]
    dataset = dataset_of([["a|||b", "{c|d}"], ["e"], ["f"], [" "]], sources)
    assert check_captions(dataset, ["[filewords]"], DataConfig()) == (
        "captions: 5 of 4 pictures: 1 empty, 1 from file names, 1 from metadata, 5 alternatives"
    )
    settings = DataConfig(wildcards=True, keep_separator="|||")
    assert check_captions(dataset, ["[filewords]"], settings) == (
        "captions: 5 of 4 pictures: 1 empty, 1 from file names, 1 from metadata, "
        "1 with keep_separator, 6 alternatives"
    )


def test_alternatives_without_end_are_said_without_their_number():
    dataset = dataset_of([["{a|b}" * 13_000]], ["text file"])
    said = check_captions(dataset, ["[filewords]"], DataConfig(wildcards=True))
    assert said.endswith("over 1000000000 alternatives")


def test_braces_that_make_no_wildcard_are_all_named():
    dataset = dataset_of([["fine", "{a"], ["{{b}}"]], ["text file"] * 2)
    settings = {"caption_prefix": "}"}
    check_captions(dataset, ["[filewords]"], DataConfig(**settings))
    with pytest.raises(DataError) as caught:
        check_captions(dataset, ["x", "[filewords]"], DataConfig(wildcards=True, **settings))
    headline, *lines = str(caught.value).splitlines()
    assert headline.startswith("wildcards is set")
    assert [line.split(": ")[:2] for line in lines] == [
        ["  template, caption_prefix, caption_suffix", "'}[filewords]'"],
        ["  0.png", "'{a'"],
        ["  1.png", "'{{b}}'"],
    ]
    assert r"write \{ and \} for braces that are text" in lines[2]
