"""Captions and prompt templates, by the web UI's rules."""

import hashlib
import re
from io import StringIO
from pathlib import Path
from random import Random

from hn.data.words import wildcards
from hn.data.words.tags import COMMAS, Tags
from hn.data.words.text_files import read_text
from hn.errors import DataError

TEMPLATES = Path(__file__).parent / "templates"
MAX_BYTES = 64 * 1024  # of a caption
BLANK = "has a blank caption"
WRITE_ONE = "Write one, or set missing_caption to filename, template or empty"
_NUMBERING = re.compile(r"^[-\d]+\s*")


def read_caption(
    picture: Path, missing: str = "stop", *, word_regex: str = "", join_string: str = " "
) -> str:
    """The caption of a picture: the whole of the `.txt` beside it.

    `missing` says what a picture without one gets: "stop" (an error), "filename" (see
    `filename_caption`), "template" or "empty". Raises `DataError`.
    """
    file = caption_file(picture)
    if file is not None:
        return read_text(file, MAX_BYTES)
    if missing == "stop":
        raise DataError(f"{picture.name} has no caption {picture.stem}.txt. {WRITE_ONE}")
    return substitute(picture.stem, missing, word_regex, join_string)


def substitute(stem: str, missing: str, word_regex: str, join_string: str) -> str:
    """What stands for a caption that is missing or blank."""
    return filename_caption(stem, word_regex, join_string) if missing == "filename" else ""


def caption_file(picture: Path) -> Path | None:
    """The `.txt` beside a picture, if there is one; a link to nowhere was meant to be one."""
    file = picture.with_suffix(".txt")
    return file if file.exists() or file.is_symlink() else None


def check_caption(text: str) -> None:
    """Hold a caption that is no file of its own to the same rules. Raises `ValueError`."""
    size = len(text.encode())  # half of a surrogate pair raises a ValueError of its own
    if size > MAX_BYTES:
        raise ValueError(f"a caption has {size} bytes; at most {MAX_BYTES} are read")
    if "\0" in text:
        raise ValueError("a caption holds a NUL character")


def filename_caption(stem: str, word_regex: str = "", join_string: str = " ") -> str:
    """The caption in a file's name: no leading numbers; the words of a `word_regex`, joined."""
    words = _NUMBERING.sub("", stem)
    return (join_string or "").join(re.findall(word_regex, words)) if word_regex else words


def load_template(name: str) -> list[str]:
    """The lines of one of our templates or of a text file. Raises `DataError` if there is none.

    Raises `DataError` if there is none.
    """
    ours = TEMPLATES / f"{name}.txt"
    path = ours if ours.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TEMPLATES.glob("*.txt")))
        raise DataError(f"template '{name}' is neither one of {known} nor a text file")
    lines = parse_template(read_text(path, MAX_BYTES))
    if not lines:
        raise DataError(f"template '{path}' is empty")
    return lines


def template_identity(name: str) -> str:
    """What tells a template from others: the name of one of ours, the hash of a file's lines."""
    if (TEMPLATES / f"{name}.txt").is_file():
        return name
    return hashlib.sha256("\n".join(load_template(name)).encode()).hexdigest()


def parse_template(text: str) -> list[str]:
    """Its lines, stripped. A blank line counts: it is the empty prompt."""
    return [line.strip() for line in StringIO(text, newline=None)]


def draw_prompt(
    caption: str,
    template: list[str],
    name: str,
    rng: Random,
    *,
    shuffle_tags: bool = False,
    tag_dropout: float = 0.0,
    tags: Tags = COMMAS,
    with_wildcards: bool = False,
) -> str:
    """Draw a line of the template; fill `[filewords]` with the caption's tags, `[name]` in.

    Random numbers are drawn in the web UI's order: the line, one number for each tag that is not
    kept, the shuffle. After the line come its wildcards and the caption's.
    """
    line = rng.choice(template)
    if with_wildcards:
        line, caption = (wildcards.draw(wildcards.parse(text), rng) for text in (line, caption))
    kept, free, end = tags.parts(caption)
    if tag_dropout:
        free = [tag for tag in free if rng.random() > tag_dropout]
    if shuffle_tags:
        rng.shuffle(free)
    return fill(line, tags.join(kept, free, end), name)


def fill(line: str, words: str, name: str) -> str:
    """Fill one line of a template."""
    return line.replace("[filewords]", words).replace("[name]", name)
