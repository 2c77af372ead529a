"""The prompt of every sample, drawn from captions and template."""

from collections import Counter
from collections.abc import Sequence

from datasets import Dataset
from tqdm import tqdm

from hn import rng
from hn.config import DataConfig
from hn.data import wildcards
from hn.data.captions import draw_prompt, fill
from hn.data.images import listed
from hn.data.tags import Tags
from hn.errors import DataError

ALL_PROMPTS_LIMIT = 2000  # more are encoded when they are drawn
MANY = 10**9
SHOWN = 40  # characters of a caption


class Prompts:
    """Draws the prompt of a picture for a step and slot.

    `captions` are those of each picture, at least one; the lines of the `template` have them in.
    """

    def __init__(
        self,
        captions: Sequence[Sequence[str]],
        template: list[str],
        name: str,
        config: DataConfig,
        seed: int,
    ) -> None:
        self._captions = captions
        self._template = framed(template, config)
        self._name = name
        self._config = config
        self._seed = seed
        self._tags = Tags(
            separator=config.tag_separator,
            keep=config.keep_tags,
            keep_separator=config.keep_separator,
        )

    def draw(self, picture: int, step: int, slot: int) -> str:
        """The prompt: perhaps empty (`caption_dropout`), else a filled line of the template."""
        random = rng.python_random(self._seed, "caption", step, slot)
        if random.random() < self._config.caption_dropout:
            return ""
        captions = self._captions[picture]
        return draw_prompt(
            captions[0] if len(captions) == 1 else random.choice(captions),
            self._template,
            self._name,
            random,
            shuffle_tags=self._config.shuffle_tags,
            tag_dropout=self._config.tag_dropout,
            tags=self._tags,
            with_wildcards=self._config.wildcards,
        )

    def plain(self) -> list[list[str]]:
        """Of every picture the prompt of each caption without chance.

        It is made of the template's first line, the first alternative of every wildcard, and all
        tags in their order.
        """
        line = wildcards.first(parsed(self._template[0], self._config))
        return [
            [self._filled(line, wildcards.first(parsed(text, self._config))) for text in captions]
            for captions in self._captions
        ]

    def all(self) -> list[str] | None:
        """Every prompt that can be drawn, or None if they are too many to encode beforehand."""
        if self._config.shuffle_tags or self._config.tag_dropout:
            return None
        if sum(map(len, self._captions)) * len(self._template) > ALL_PROMPTS_LIMIT:
            return None  # without reading any of them
        texts = [parsed(text, self._config) for captions in self._captions for text in captions]
        lines = [parsed(line, self._config) for line in self._template]
        if sum(map(wildcards.count, texts)) * sum(map(wildcards.count, lines)) > ALL_PROMPTS_LIMIT:
            return None
        drawn_lines = [line for choices in lines for line in wildcards.every(choices)]
        filled = [
            self._filled(line, caption)
            for text in texts
            for caption in wildcards.every(text)
            for line in drawn_lines
        ]
        return list(dict.fromkeys(["", *filled]))

    def _filled(self, line: str, caption: str) -> str:
        return fill(line, self._tags.plain(caption), self._name)


def captions_of(dataset: Dataset) -> list[list[str]]:
    """The captions of each picture."""
    pairs = zip(dataset["caption"][:], dataset["other_captions"][:], strict=True)
    return [[caption, *others] for caption, others in pairs]


def check_captions(dataset: Dataset, template: list[str], config: DataConfig) -> str:
    """What there is of captions, in a line.

    Raises `DataError` listing captions and lines of the template whose braces make no wildcards.
    """
    place = "template, caption_prefix, caption_suffix"
    _, faults = _count([(place, line) for line in framed(template, config)], config)
    groups = zip(dataset["name"][:], captions_of(dataset), strict=True)
    named = [(name, text) for name, captions in groups for text in captions]
    alternatives, more = _count(named, config)
    if faults or more:
        raise DataError(listed("wildcards is set, but not all braces make one", faults + more))
    sources = Counter(dataset["caption_source"][:])
    return _described([text for _, text in named], alternatives, sources, config.keep_separator)


def framed(template: list[str], config: DataConfig) -> list[str]:
    """The lines of a template with `caption_prefix` and `caption_suffix` about the caption."""
    words = f"{config.caption_prefix}[filewords]{config.caption_suffix}"
    return [line.replace("[filewords]", words) for line in template]


def parsed(text: str, config: DataConfig) -> wildcards.Text:
    """A caption or line with its wildcards; without `wildcards` braces are text.

    Raises `ValueError` for braces that make none.
    """
    return wildcards.parse(text) if config.wildcards else [text]


def _count(texts: list[tuple[str, str]], config: DataConfig) -> tuple[int, list[str]]:
    """How many texts can be drawn of these, each with its place, and which cannot be read."""
    number, faults = 0, []
    for place, text in tqdm(texts, desc="checking captions", unit="caption", leave=False):
        try:
            number += wildcards.count(parsed(text, config))
        except ValueError as error:
            faults.append(f"{place}: {text[:SHOWN]!r}: {error}")
    return number, faults


def _described(
    texts: list[str], alternatives: int, sources: Counter[str], keep_separator: str
) -> str:
    parts = [f"{sum(not text.strip() for text in texts)} empty"]
    parts += [f"{sources['file name']} from file names", f"{sources['metadata']} from metadata"]
    if keep_separator:
        parts.append(f"{sum(keep_separator in text for text in texts)} with keep_separator")
    many = f"over {MANY}" if alternatives > MANY else str(alternatives)  # Python prints no giants
    parts.append(f"{many} alternatives")
    return f"captions: {len(texts)} of {sources.total()} pictures: {', '.join(parts)}"
