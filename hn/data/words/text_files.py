"""Text that others wrote: UTF-8, of bounded length, without NUL characters."""

from pathlib import Path

from hn.errors import DataError


def read_text(file: Path, max_bytes: int) -> str:
    """Read UTF-8 with or without a mark, any line ends. Raises `DataError` naming the place."""
    try:
        size = file.stat().st_size
        if size > max_bytes:
            raise DataError(f"{file.name} has {size} bytes; at most {max_bytes} are read")
        if not file.is_file():  # a pipe would wait for ever
            raise DataError(f"cannot read {file}: it is not a regular file")
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
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
