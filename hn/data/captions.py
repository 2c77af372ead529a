"""Captions and prompt templates, by the web UI's rules."""

import re
from io import StringIO
from pathlib import Path
from random import Random

from hn.errors import DataError

TEMPLATES = Path(__file__).parent / "templates"
MAX_BYTES = 64 * 1024
_NUMBERING = re.compile(r"^[-\d]+\s*")


def read_caption(
    picture: Path, missing: str = "error", *, word_regex: str = "", join_string: str = " "
) -> str:
    """The caption of a picture: the whole of the `.txt` beside it.

    `missing` says what a picture without one gets: "error", "filename" (see `filename_caption`) or
    "empty". Raises `DataError`.
    """
    file = picture.with_suffix(".txt")
    if file.exists():
        return _read_text(file)
    if missing == "filename":
        return filename_caption(picture.stem, word_regex, join_string)
    if missing == "empty":
        return ""
    raise DataError(
        f"{picture.name} has no caption {file.name}. Write one, or set missing_caption to filename "
        "or empty"
    )


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
    lines = parse_template(_read_text(path))
    if not lines:
        raise DataError(f"template '{path}' is empty")
    return lines


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
) -> str:
    """Draw a line of the template; fill `[filewords]` with the caption's tags, `[name]` in.

    Random numbers are drawn in the web UI's order: the line, one number for each tag, the shuffle.
    """
    line = rng.choice(template)
    tags = caption.split(",")
    if tag_dropout:
        tags = [tag for tag in tags if rng.random() > tag_dropout]
    if shuffle_tags:
        rng.shuffle(tags)
    return fill(line, ",".join(tags), name)


def fill(line: str, words: str, name: str) -> str:
    """Fill one line of a template."""
    return line.replace("[filewords]", words).replace("[name]", name)


def _read_text(file: Path) -> str:
    """Read UTF-8 with or without a mark, any line ends. Raises `DataError` naming the place."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{file.name} has {len(data)} bytes; a caption has at most {MAX_BYTES}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name} is not UTF-8 text (byte {error.start}). Convert it: iconv -f LATIN1 -t "
            f"UTF-8 {file.name} > new.txt"
        ) from error
    if "\0" in text:
        raise DataError(
            f"{file.name} holds a NUL character (byte {data.index(0)}): is it text, in UTF-8?"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")
