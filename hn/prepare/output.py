"""The output folder: whether it may be written, what is written into it, and its manifest."""

import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from hn.errors import OptionError, StorageError
from hn.storage import write_bytes

MANIFEST = "manifest.json"
DEBUG = "debug"
MAX_STEM = 150  # bytes of the source's name in a new one; file systems end at 255
# What ends with .tmp was being written when a pass was killed.
_OURS = re.compile(r"\d{5,}-\d+-.*\.(png|txt)|\.(\d{5,}-\d+-|manifest).*\.tmp", re.DOTALL)
_OUR_DRAWINGS = re.compile(r"\d{5,}-.*\.png|\.\d{5,}-.*\.tmp", re.DOTALL)
_NAMED = 5


class OutputFolder:
    """Where the pictures made go. Nothing is touched before the first one is written."""

    def __init__(self, folder: Path, *, source: Path, overwrite: bool) -> None:
        """Raises `OptionError` for a folder around the sources, one that holds anything, or a file.

        `overwrite` allows a folder in which everything looks as if it was written here.
        """
        self.folder = folder
        if source.resolve().is_relative_to(folder.resolve()):
            raise OptionError(
                f"--output '{folder}' is or holds the folder of the sources. Choose another."
            )
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"--output '{folder}' is a file. Choose a folder.")
        self._old = _contents(folder)
        foreign = sorted(
            str(path.relative_to(folder)) for path in self._old if not _is_ours(path, folder)
        )
        if foreign and overwrite:
            more = ", ..." if len(foreign) > _NAMED else ""
            raise OptionError(
                f"--output '{folder}' holds {len(foreign)} entries that were not written here "
                f"({', '.join(map(repr, foreign[:_NAMED]))}{more}): --overwrite would mix them "
                "with the new pictures. Move them, or choose another folder."
            )
        if self._old and not overwrite:
            raise OptionError(
                f"--output '{folder}' is not empty. Choose another folder, or replace what was "
                "prepared there with --overwrite."
            )

    def write(self, name: str, picture: Image.Image, caption: str) -> None:
        """Write `name`.png, and `name`.txt unless the caption is empty. Raises `StorageError`."""
        self._remove_old()
        if caption:  # first: a picture that is there has its caption
            write_bytes(self.folder / f"{name}.txt", caption.encode())
        write_bytes(self.folder / f"{name}.png", _png(picture))

    def write_drawing(self, name: str, drawing: Image.Image) -> None:
        """Write a debug picture, into a folder of its own: it must not be trained on."""
        write_bytes(self.folder / DEBUG / f"{name}.png", _png(drawing))

    def write_manifest(self, content: dict[str, Any]) -> None:
        """Write the manifest, last: it says that everything it names is there."""
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_bytes(self.folder / MANIFEST, f"{text}\n".encode())

    def _remove_old(self) -> None:
        """Remove what `overwrite` gave up; the manifest first, since it vouches for the rest."""
        try:
            for path in sorted(self._old, key=lambda path: path.name != MANIFEST):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot remove what is in --output '{self.folder}': {error.strerror or error}"
            ) from error
        self._old = []


def shortened(stem: str) -> str:
    """As much of a name as fits into a longer one."""
    return stem.encode()[:MAX_STEM].decode(errors="ignore")


def _contents(folder: Path) -> list[Path]:
    """What the folder and its debug folder hold; any other sub-folder counts as an entry."""
    if not folder.is_dir():
        return []
    debug = folder / DEBUG
    if debug.is_symlink() or not debug.is_dir():
        return list(folder.iterdir())
    return [*(path for path in folder.iterdir() if path != debug), *debug.iterdir()]


def _is_ours(path: Path, folder: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if path.parent != folder:
        return _OUR_DRAWINGS.fullmatch(path.name) is not None
    return path.name == MANIFEST or _OURS.fullmatch(path.name) is not None


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
