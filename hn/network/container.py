"""The `.pt` container: pickled plain data in a zip archive (or in torch's older, flat form).

Reading never runs code (`weights_only=True`, without exception) and never trusts the archive: it is
checked, re-packed in memory and only that copy is given to torch, because two zip readers can see
two things in one file. Writing keeps the three kinds of records that the web UI's safety check
allows (`data.pkl`, `version`, `data/N`): what `torch.save` writes today is refused there as "may be
malicious". The same content always gives the same bytes.
"""

import io
import pickletools
import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hn.errors import ModelError, printable, shown
from hn.network.numpy_numbers import STAND_INS

MAX_PICKLE = 4 * 2**20  # bytes of structure: a real hypernetwork's is a few kilobytes
MAX_FILE = 8 * 2**30  # bytes
_RECORD = re.compile(r"[^/]+/(data\.pkl|version|byteorder|\.[\w/]+|data/\d+)")
_KEPT = re.compile(r"[^/]+/(data\.pkl|version|data/\d+)")
_EARLY = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold: bytes must not depend on the clock


def read(path: Path) -> Any:
    """The object in a `.pt` file. Raises `ModelError` that says what the file is instead."""
    data = _read_bytes(path)
    if data[:2] == b"PK":
        data = _repack_checked(data, path)
    elif not _is_legacy(data):
        raise ModelError(
            f"{path} is not a .pt file: {_looks_like(data)}. Download or export it again."
        )
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes torch raises whatever its unpickler stumbles over
        raise ModelError(
            f"{path} was refused: it is damaged, or holds more than numbers and plain values "
            f"({_reason(error)}). Loading it could run a stranger's code, so there is no switch "
            "for that; ask for a .safetensors file, or for one that torch.save(state, file) wrote "
            "as it comes, state being a dict of tensors, numbers, text, lists and dicts."
        ) from error


def _reason(error: Exception) -> str:
    """What torch stumbled over, in a line, without its advice to trust the file."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    lines = [line for line in text.splitlines() if line.strip() and "eights" not in line]
    line = lines[0].strip() if lines else type(error).__name__
    return printable(line.partition(" Please use ")[0])[:300]


def write(obj: Any) -> bytes:
    """The bytes of a `.pt` file that every host accepts; tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return _zip(
            {name: archive.read(name) for name in archive.namelist() if _KEPT.fullmatch(name)}
        )


@dataclass(frozen=True)
class Wrapping:
    """How a `.pt` is packed: its records (without the archive's name; empty in torch's flat form)
    and the Python objects that its pickles name.
    """

    records: frozenset[str]
    names: frozenset[str]


def examine(path: Path) -> Wrapping:
    """How the file is packed, without loading it; for files that `read` accepts."""
    data = path.read_bytes()
    if data[:2] != b"PK":
        # magic number, protocol, system, content, storage keys
        stream = io.BytesIO(data)
        return Wrapping(frozenset(), frozenset().union(*(_named(stream) for _ in range(5))))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [name.split("/", 1)[1] for name in archive.namelist()]
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return Wrapping(frozenset(records), _named(io.BytesIO(archive.read(pickled))))


def _named(stream: io.BytesIO) -> frozenset[str]:
    """The objects that the next pickle in the stream names, such as `torch.FloatStorage`."""
    return frozenset(
        str(argument).replace(" ", ".")
        for opcode, argument, _ in pickletools.genops(stream)
        if opcode.name == "GLOBAL"
    )


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise ModelError(f"{path} has {size} bytes; a hypernetwork has at most {MAX_FILE}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def _repack_checked(data: bytes, path: Path) -> bytes:
    """Check every record (name, compression, checksum, size) and pack them anew."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_records(archive.infolist(), path)
            return _zip({record.filename: archive.read(record) for record in archive.infolist()})
    except ModelError:
        raise
    except Exception as error:  # a dozen kinds, like torch's
        raise ModelError(
            f"{path} is damaged or cut short ({printable(str(error))[:300]}). Download or export "
            "it again."
        ) from error


def _check_records(records: list[zipfile.ZipInfo], path: Path) -> None:
    names = Counter(record.filename for record in records)
    for record in records:
        if not _RECORD.fullmatch(record.filename) or names[record.filename] > 1:
            raise ModelError(
                f"{path} is not a .pt file: it holds the record {shown(record.filename)}"
            )
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise ModelError(
                f"{path} was refused: the record {shown(record.filename)} is compressed, as torch "
                "never does"
            )
        if record.filename.endswith("/data.pkl") and record.file_size > MAX_PICKLE:
            raise ModelError(f"{path} was refused: its structure takes {record.file_size} bytes")
    if not any(name.endswith("/data.pkl") for name in names):
        raise ModelError(f"{path} is a zip archive, but not a .pt file: it has no data.pkl")
    if len({name.split("/", 1)[0] for name in names}) > 1:
        raise ModelError(f"{path} is a zip archive, but not a .pt file: it has several folders")


def _zip(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name, _EARLY), content)
    return buffer.getvalue()


def _is_legacy(data: bytes) -> bool:
    """Torch's flat form starts with a pickled magic number."""
    return data[:2] == b"\x80\x02" and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in data[:64]


def _looks_like(data: bytes) -> str:
    """A few words on what else the file could be."""
    start = data[:200].lstrip().lower()
    if not data:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, the real file was not fetched"
    if start.startswith((b"<!doctype", b"<html")):
        return "it is a web page"
    if start.startswith(b"{"):
        return "it is JSON text"
    if data[:4] == b"\x89PNG" or data[:3] == b"\xff\xd8\xff":
        return "it is a picture"
    if data[257:262] == b"ustar":
        return "it is a tar archive, torch's oldest form, whose reader runs code"
    if data[8:9] == b"{":
        return "it is a .safetensors file under another name"
    if data[:1] == b"\x80":
        return "it is a pickle that torch did not write"
    return "nothing in it is known"
