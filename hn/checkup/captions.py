"""What the captions of a set are like: how many, how long, of which tags."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hn.data.pictures.images import Folder
from hn.data.words.captions import BLANK
from hn.errors import ModelError

CHUNK = 77  # tokens that Stable Diffusion's text encoders read at once
TOKENIZER_FILES = ("vocab.json", "tokenizer.json")
_WANTED = "Give the folder of a Stable Diffusion model in diffusers' layout, or its tokenizer's."


@dataclass(frozen=True, kw_only=True)
class CaptionStatistics:
    """Over the captions that can be used."""

    count: int
    missing: list[str]  # pictures without a .txt
    empty: list[str]  # pictures whose .txt holds nothing
    repeated: list[dict[str, Any]]  # {"caption", "pictures"}, the most frequent first
    unit: str  # of the lengths: "tokens" or "words"
    shortest: int
    median: float
    longest: int
    limit: int | None  # tokens of a chunk
    long: list[str]  # pictures whose caption has more, the longest first
    distinct_tags: int
    tags: list[dict[str, Any]]  # {"tag", "captions"}: the most frequent
    in_every_caption: list[str]
    without_picture: list[str]  # .txt files


class Ruler:
    """Measures captions: in tokens of a tokenizer if there is one, else in words."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` holds a CLIP tokenizer, or a model with one. Raises `ModelError`."""
        self.unit = "words" if folder is None else "tokens"
        self.limit: int | None = None
        self._tokenizer: Any = None
        if folder is not None:
            self._tokenizer = _load_tokenizer(folder)
            self.limit = min(self._tokenizer.model_max_length, CHUNK) - 2  # start and end

    def lengths(self, captions: list[str]) -> list[int]:
        """The length of each."""
        if self._tokenizer is None:
            return [len(caption.split()) for caption in captions]
        from hn.diffusion.conditions.text_encoder import token_ids

        return [len(ids) for ids in token_ids(self._tokenizer, captions)] if captions else []


def _load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer of a folder or of its folder `tokenizer`. Raises `ModelError`."""
    if not folder.is_dir():
        raise ModelError(f"tokenizer '{folder}' is not a folder. {_WANTED}")
    inner = folder / "tokenizer"
    place = inner if inner.is_dir() else folder
    # transformers makes an empty tokenizer of a folder without these, and says nothing
    if not any((place / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(
            f"tokenizer '{place}' holds neither {' nor '.join(TOKENIZER_FILES)}. {_WANTED}"
        )
    from transformers import CLIPTokenizer  # takes seconds

    try:
        return CLIPTokenizer.from_pretrained(place)
    except Exception as error:  # the reader of tokenizer.json raises bare ones
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"tokenizer '{place}' cannot be loaded: {reason}. {_WANTED}") from error


def caption_statistics(found: Folder, ruler: Ruler, top: int) -> CaptionStatistics:
    """The statistics, with the `top` most frequent tags."""
    without = [path.name for path in found.pictures if not path.with_suffix(".txt").exists()]
    usable = found.texts
    lengths = dict(zip(usable, ruler.lengths(list(usable.values())), strict=True))
    limit = float("inf") if ruler.limit is None else ruler.limit
    long = sorted((name for name in lengths if lengths[name] > limit), key=lambda n: -lengths[n])
    tags = Counter(tag for caption in usable.values() for tag in _tags(caption))
    every = [tag for tag, count in tags.items() if count == len(usable)]
    return CaptionStatistics(
        count=len(usable),
        missing=without,
        empty=[name for name in _blank(found) if name not in without],
        repeated=_repeated(usable),
        unit=ruler.unit,
        shortest=min(lengths.values(), default=0),
        median=median(lengths.values()) if lengths else 0,
        longest=max(lengths.values(), default=0),
        limit=ruler.limit,
        long=long,
        distinct_tags=len(tags),
        tags=[{"tag": tag, "captions": count} for tag, count in tags.most_common(top)],
        in_every_caption=every if len(usable) > 1 else [],
        without_picture=[name for name in found.unused if name.endswith(".txt")],
    )


def _blank(found: Folder) -> list[str]:
    """Pictures whose caption is blank, whether training takes that or not."""
    taken = [name for name, caption in found.texts.items() if not caption.strip()]
    return sorted([*taken, *(name for name, fault in found.unusable.items() if BLANK in fault)])


def _tags(caption: str) -> list[str]:
    """Its different tags: what stands between commas."""
    stripped = (tag.strip() for tag in caption.split(","))
    return list(dict.fromkeys(tag for tag in stripped if tag))


def _repeated(captions: dict[str, str]) -> list[dict[str, Any]]:
    pictures: dict[str, list[str]] = defaultdict(list)
    for name, caption in captions.items():
        if caption.strip():
            pictures[caption.strip()].append(name)
    groups = sorted(pictures.items(), key=lambda group: -len(group[1]))
    return [{"caption": caption, "pictures": names} for caption, names in groups if len(names) > 1]
