"""Hypernetworks named in prompts, by the web UI's rules, and the folder they are found in."""

import pytest

import hn
from hn.errors import ModelError, OptionError


@pytest.mark.parametrize(
    ("prompt", "clean", "tags"),
    [
        ("a star", "a star", []),
        ("a star <hypernet:x>", "a star ", [("x", 1.0)]),
        ("<hypernet:a b-1.0:0.8>a star", "a star", [("a b-1.0", 0.8)]),
        ("a <hypernet:x:-0.5> star<hypernet:y:2>", "a  star", [("x", -0.5), ("y", 2.0)]),
        ("<hypernet:x:1><hypernet:x:0.5>", "", [("x", 1.0), ("x", 0.5)]),
        ("a < b > c: <3", "a < b > c: <3", []),
    ],
)
def test_tags_are_read_and_taken_out(prompt, clean, tags):
    assert hn.parse_prompt_tags(prompt) == (clean, tags)


def test_the_first_prompt_of_a_batch_decides():
    with pytest.warns(UserWarning, match="prompt 2 names other hypernetworks"):
        found = hn.parse_prompt_tags(["a <hypernet:x>", "b<hypernet:y>"])
    assert found == (["a ", "b"], [("x", 1.0)])
    assert hn.parse_prompt_tags(["a <hypernet:x>", "<hypernet:x:1>b"])[1] == [("x", 1.0)]
    assert hn.parse_prompt_tags([]) == ([], [])


@pytest.mark.parametrize(
    "tag", ["hypernet:x:strong", "hypernet:x:1:2", "hypernet::1", "hypernet:x:nan"]
)
def test_a_tag_that_means_nothing_is_refused(tag):
    with pytest.raises(OptionError, match="it must be <hypernet:name>"):
        hn.parse_prompt_tags(f"a star <{tag}>")


def test_tags_of_others_are_not_skipped():
    with pytest.raises(OptionError, match=r"'<lora:x:1>': only <hypernet"):
        hn.parse_prompt_tags("a star <lora:x:1>")


@pytest.fixture
def folder(tmp_path):
    for name in ("b/one.pt", "A/two.safetensors", "A/two.pt", "None.pt", "b/twin.pt", "c/twin.pt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "other.txt").touch()
    return tmp_path


def test_files_are_found_by_their_stem(folder):
    assert hn.find_hypernetwork("one", folder) == folder / "b/one.pt"
    assert hn.find_hypernetwork("two", folder) == folder / "A/two.safetensors"


def test_names_that_are_not_there_or_not_unique_are_said(folder):
    with pytest.raises(
        ModelError, match=r"no hypernetwork 'ones'.*mean 'one'\?\); there are: two, "
    ):
        hn.find_hypernetwork("ones", folder)
    with pytest.raises(ModelError, match="no hypernetwork 'None'"):
        hn.find_hypernetwork("None", folder)
    with pytest.raises(ModelError, match=r"more than once: .*b/twin.pt, .*c/twin.pt"):
        hn.find_hypernetwork("twin", folder)
    with pytest.raises(ModelError, match="is not there"):
        hn.find_hypernetwork("one", folder / "gone")
