"""The prompt of every sample, drawn from captions and template."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from random import Random
from typing import NamedTuple

from datasets import Dataset
from tqdm import tqdm

from hn import rng
from hn.config import DataConfig
from hn.data.pictures.columns import Rows, batches
from hn.data.words import wildcards
from hn.data.words.captions import draw_prompt, fill
from hn.data.words.tags import Tags
from hn.errors import DataError, listed

EXAMPLES = 2000  # pictures whose prompts are looked at
MANY = 10**9
HELD = 2048  # pictures whose prompts are kept where they are always the same
SHOWN = 40  # characters of a caption
_WORDING = ("caption_prefix", "caption_suffix", "regularization")


class Wording(NamedTuple):
    """What stands about a picture's captions; None: as the settings say.

    Captions for regularization stand alone: without template and settings, and with no name put in.
    """

    prefix: str | None = None
    suffix: str | None = None
    alone: bool = False


AS_SET = Wording()


class Prompts:
    """Draws the prompt of a picture for a step and slot.

    `captions` are those of each picture, at least one; the lines of the `template` have them in.
    Of all pictures, or those of each, the `wordings` say otherwise.
    """

    def __init__(
        self,
        captions: Sequence[Sequence[str]],
        template: list[str],
        name: str,
        config: DataConfig,
        seed: int,
        wordings: Sequence[Wording] | None = None,
    ) -> None:
        self._captions = captions
        self._wordings = wordings
        self._template = template
        self._name = name
        self._config = config
        self._seed = seed
        self._held = lru_cache(HELD)(self.plain)
        self._tags = Tags(
            separator=config.tag_separator,
            keep=config.keep_tags,
            keep_separator=config.keep_separator,
        )

    @classmethod
    def of(
        cls, dataset: Dataset, template: list[str], name: str, config: DataConfig, seed: int
    ) -> "Prompts":
        """The prompts of a dataset's pictures, read when they are asked for."""
        return cls(captions_of(dataset), template, name, config, seed, _wordings_of(dataset))

    def __len__(self) -> int:
        return len(self._captions)

    def draw(self, picture: int, step: int, slot: int) -> str:
        """The prompt: perhaps empty (`caption_dropout`), else a filled line of the template."""
        if self._is_certain and len(plain := self._held(picture)) == 1:
            return plain[0]
        captions, wording = self._captions[picture], self._wording(picture)
        if not self._config.prompt_variants:
            return self.draw_of(captions, step, slot, wording)
        random = rng.python_random(self._seed, "caption", step, slot)
        if random.random() < self._config.caption_dropout:
            return ""
        return self._variant(picture, random.randrange(self._config.prompt_variants))

    def draw_of(
        self, captions: Sequence[str], step: int, slot: int, wording: Wording = AS_SET
    ) -> str:
        """The same for a picture with these captions."""
        random = rng.python_random(self._seed, "caption", step, slot)
        if random.random() < self._config.caption_dropout:
            return ""
        return self._drawn(captions, wording, random)

    @cached_property
    def _is_certain(self) -> bool:
        """Whether nothing is left to chance but which caption of a picture is taken."""
        config = self._config
        by_chance = config.caption_dropout or config.tag_dropout or config.shuffle_tags
        return len(self._template) == 1 and not (by_chance or config.wildcards)

    def _variant(self, picture: int, variant: int) -> str:
        """One of the prompts of a picture that `prompt_variants` allows."""
        random = rng.python_random(self._seed, "prompt", picture, variant)
        return self._drawn(self._captions[picture], self._wording(picture), random)

    def _drawn(self, captions: Sequence[str], wording: Wording, random: Random) -> str:
        return draw_prompt(
            captions[0] if len(captions) == 1 else random.choice(captions),
            framed(self._template, self._config, wording),
            self._name_in(wording),
            random,
            shuffle_tags=self._config.shuffle_tags,
            tag_dropout=self._config.tag_dropout,
            tags=self._tags,
            with_wildcards=self._config.wildcards,
        )

    def plain(self, picture: int) -> list[str]:
        """The prompt of each caption of a picture without chance.

        It is made of the template's first line, the first alternative of every wildcard, and all
        tags in their order.
        """
        return self.plain_of(self._captions[picture], self._wording(picture))

    def plain_of(self, captions: Sequence[str], wording: Wording = AS_SET) -> list[str]:
        """The same for a picture with these captions."""
        first = framed(self._template, self._config, wording)[0]
        line = wildcards.first(parsed(first, self._config))
        return [
            self._filled(line, wildcards.first(parsed(text, self._config)), wording)
            for text in captions
        ]

    def examples(self) -> list[str]:
        """The plain prompts of at most `EXAMPLES` pictures, evenly chosen."""
        count = len(self)
        chosen = range(count) if count <= EXAMPLES else _evenly(count, EXAMPLES)
        return [prompt for picture in chosen for prompt in self.plain(picture)]

    def all(self, limit: int) -> list[str] | None:
        """Every prompt that can be drawn, or None if they are countless or more than `limit`."""
        variants = self._config.prompt_variants
        if len(self) * max(1, variants) > limit:
            return None  # without reading any of them
        if variants:
            pairs = ((picture, it) for picture in range(len(self)) for it in range(variants))
            return list(dict.fromkeys(["", *(self._variant(*pair) for pair in pairs)]))
        if self._config.shuffle_tags or self._config.tag_dropout:
            return None
        every: dict[str, None] = {"": None}
        number = 0
        for picture, captions in enumerate(self._captions):
            wording = self._wording(picture)
            texts = [parsed(text, self._config) for text in captions]
            template = framed(self._template, self._config, wording)
            lines = [parsed(line, self._config) for line in template]
            number += sum(map(wildcards.count, texts)) * sum(map(wildcards.count, lines))
            if number > limit:
                return None
            every |= dict.fromkeys(self._every(texts, lines, wording))
        return list(every)

    def _every(
        self, texts: list[wildcards.Text], lines: list[wildcards.Text], wording: Wording
    ) -> Iterator[str]:
        """Every prompt of these captions in these lines."""
        drawn_lines = [line for choices in lines for line in wildcards.every(choices)]
        for text in texts:
            for caption in wildcards.every(text):
                for line in drawn_lines:
                    yield self._filled(line, caption, wording)

    def _wording(self, picture: int) -> Wording:
        return AS_SET if self._wordings is None else self._wordings[picture]

    def _name_in(self, wording: Wording) -> str:
        return "[name]" if wording.alone else self._name

    def _filled(self, line: str, caption: str, wording: Wording) -> str:
        return fill(line, self._tags.plain(caption), self._name_in(wording))


def captions_of(dataset: Dataset) -> Rows[tuple[str, ...]]:
    """The captions of each picture, read when they are asked for."""
    return Rows(dataset, ("caption", "other_captions"), lambda row: (row[0], *row[1]))


def _wordings_of(dataset: Dataset) -> Rows[Wording]:
    return Rows(dataset, _WORDING, lambda row: Wording(*row))


def check_captions(dataset: Dataset, template: list[str], config: DataConfig) -> str:
    """What there is of captions, in a line; with a progress bar.

    Raises `DataError` listing captions and lines of the template whose braces make no wildcards.
    """
    tally = _Tally(config)
    wordings: dict[Wording, None] = {}
    columns = ("name", "caption", "other_captions", "caption_source", *_WORDING)
    with tqdm(desc="checking captions", unit="picture", total=len(dataset), leave=False) as bar:
        for rows in batches(dataset, columns):
            for name, caption, others, source, *wording in rows:
                tally.add(name, (caption, *others), source)
                wordings[Wording(*wording)] = None
            bar.update(len(rows))
    check_template(template, config, tuple(wordings), tally.faults)
    return tally.described()


def check_template(
    template: list[str],
    config: DataConfig,
    wordings: Sequence[Wording] = (AS_SET,),
    faults: Sequence[str] = (),
) -> None:
    """Raises `DataError` listing lines whose braces make no wildcards, and other `faults`."""
    place = "template, caption_prefix, caption_suffix"
    lines = {line: None for it in wordings for line in framed(template, config, it)}
    found = [fault for line in lines for fault in _fault(place, line, config)]
    if found or faults:
        raise DataError(listed("wildcards is set, but not all braces make one", [*found, *faults]))


class _Tally:
    """Counts captions."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._captions = self._empty = self._separated = self._alternatives = 0
        self._sources: Counter[str] = Counter()
        self.faults: list[str] = []

    def add(self, name: str, captions: tuple[str, ...], source: str) -> None:
        """Count those of a picture."""
        self._sources[source] += 1
        self._captions += len(captions)
        separator = self._config.keep_separator
        for text in captions:
            self._empty += not text.strip()
            self._separated += bool(separator) and separator in text
            faults = _fault(name, text, self._config)
            self.faults += faults
            if not faults:
                self._alternatives += wildcards.count(parsed(text, self._config))

    def described(self) -> str:
        """The numbers in a line."""
        parts = [f"{self._empty} empty", f"{self._sources['file name']} from file names"]
        parts.append(f"{self._sources['metadata']} from metadata")
        if self._config.keep_separator:
            parts.append(f"{self._separated} with keep_separator")
        many = self._alternatives > MANY  # Python prints no giants
        parts.append(f"over {MANY} alternatives" if many else f"{self._alternatives} alternatives")
        pictures = self._sources.total()
        return f"captions: {self._captions} of {pictures} pictures: {', '.join(parts)}"


def framed(template: list[str], config: DataConfig, wording: Wording = AS_SET) -> list[str]:
    """The lines of a template with prefix and suffix about the caption."""
    prefix, suffix, lines = config.caption_prefix, config.caption_suffix, template
    if wording.alone:
        prefix, suffix, lines = "", "", ["[filewords]"]
    prefix = prefix if wording.prefix is None else wording.prefix
    suffix = suffix if wording.suffix is None else wording.suffix
    return [line.replace("[filewords]", f"{prefix}[filewords]{suffix}") for line in lines]


def parsed(text: str, config: DataConfig) -> wildcards.Text:
    """A caption or line with its wildcards; without `wildcards` braces are text.

    Raises `ValueError` for braces that make none.
    """
    return wildcards.parse(text) if config.wildcards else [text]


def _fault(place: str, text: str, config: DataConfig) -> list[str]:
    """What is wrong with the braces of a text, if anything is."""
    try:
        parsed(text, config)
    except ValueError as error:
        return [f"{place}: {text[:SHOWN]!r}: {error}"]
    return []


def _evenly(count: int, chosen: int) -> list[int]:
    """Places from the first of `count` to the last in even steps."""
    return [place * (count - 1) // (chosen - 1) for place in range(chosen)]
