"""The captions of all pictures of a folder: from text files, from metadata, or from names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from hn.data.words.captions import BLANK, WRITE_ONE, caption_file, read_caption, substitute
from hn.data.words.metadata import Metadata
from hn.errors import DataError

Source = Literal["text file", "metadata", "file name", "column", "none"]


@dataclass(frozen=True)
class Captioned:
    """What is written about a picture, at least one caption, and where."""

    captions: list[str]
    source: Source


@dataclass(frozen=True, kw_only=True)
class CaptionReader:
    """Finds a picture's captions: beside it, in the metadata, or as `missing` says."""

    metadata: Metadata
    missing: str = "stop"
    word_regex: str = ""
    join_string: str = " "
    lines: bool = False

    def read_all(
        self, pictures: list[Path]
    ) -> tuple[dict[str, Captioned], dict[str, str], list[str]]:
        """The captions of each picture or what is wrong with them, by its name, and other faults:
        of the metadata, and where two pictures have one caption file.
        """
        self.metadata.check_pictures({picture.name for picture in pictures})
        found: dict[str, Captioned] = {}
        unusable: dict[str, str] = {}
        for picture in tqdm(pictures, desc="reading captions", unit="picture", leave=False):
            try:
                _check_name(picture)
                found[picture.name] = self._read(picture)
            except DataError as error:
                unusable[picture.name] = str(error)
        without_row = [path for path in pictures if path.name not in self.metadata.rows]
        return found, unusable, [*self.metadata.faults, *_shared_files(without_row)]

    def _read(self, picture: Path) -> Captioned:
        """Raises `DataError` if there is none, if there are two, or if it cannot be read."""
        row, file = self.metadata.rows.get(picture.name), caption_file(picture)
        if row is not None and file is not None:
            raise DataError(
                f"{picture.name} has captions in {file.name} and in line {row.line} of "
                f"{self.metadata.file}: remove one of the two"
            )
        if row is not None and row.captions:
            return Captioned(self._split(row.captions), "metadata")
        if row is not None and self.missing == "stop":
            raise DataError(
                f"{picture.name} {BLANK} in line {row.line} of {self.metadata.file}. {WRITE_ONE}"
            )
        words = self.word_regex, self.join_string
        caption = read_caption(picture, self.missing, word_regex=words[0], join_string=words[1])
        if file is not None and caption.strip():
            return Captioned(self._split([caption]), "text file")
        if file is not None and self.missing == "stop":
            raise DataError(f"{picture.name} {BLANK} in {file.name}. {WRITE_ONE}")
        caption = substitute(picture.stem, self.missing, *words)
        return Captioned([caption], "file name" if self.missing == "filename" else "none")

    def _split(self, captions: list[str]) -> list[str]:
        return lines_of(captions) if self.lines else captions


def lines_of(captions: list[str]) -> list[str]:
    """The lines of all captions that are not blank; an empty caption if there are none."""
    lines = [line.strip() for caption in captions for line in caption.split("\n")]
    return [line for line in lines if line] or [""]


def _check_name(path: Path) -> None:
    """Arrow, which holds the dataset, knows names in UTF-8 only. Raises `DataError`."""
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path.name!r} is not a name in UTF-8: rename it") from error


def _shared_files(pictures: list[Path]) -> list[str]:
    """Two pictures that differ in their ending only would share one caption file."""
    first: dict[str, Path] = {}
    return [
        f"{path.name} and {first[path.stem].name} share {path.stem}.txt: rename one"
        for path in pictures
        if first.setdefault(path.stem, path) != path
    ]
