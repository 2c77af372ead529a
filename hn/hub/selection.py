"""What of a cache is published: the entries of its pictures, and no others.

The tensors of a cache also hold what earlier pictures, or those of other sets, left there. Contexts
are found by their prompt, so nothing says whose they are: all of them count as the cache's own.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from hn.data.cache.tensor_files import OF_PROMPTS
from hn.errors import DataError


@dataclass(frozen=True)
class Selection:
    """Files by path in the repository, and how many entries of no picture were left out."""

    files: dict[str, Path]
    left_out: int


def select(files: dict[str, Path], scratch: Path) -> Selection:
    """The files of a cache without foreign entries; mixed shards are written anew in `scratch`.

    Raises `DataError` for a damaged file, and where a picture's entry is missing.
    """
    indices = {name: path for name, path in files.items() if name.startswith("pictures/")}
    wanted = _named_by(list(indices.values()))
    selected, missing, left_out = dict(indices), set(wanted), 0
    shards = sorted(files.keys() - indices.keys())
    for name in tqdm(
        shards, "choosing entries", unit="file", leave=False, disable=len(shards) < 99
    ):
        table = read_arrow(files[name])
        keys, kinds = table["key"].to_pylist(), table["kind"].to_pylist()
        own = [key in wanted or kind in OF_PROMPTS for key, kind in zip(keys, kinds, strict=True)]
        missing.difference_update(keys)
        left_out += own.count(False)
        if all(own):
            selected[name] = files[name]
        elif any(own):
            path = _write(table.filter(pa.array(own)), scratch)
            selected[f"tensors/{path.name}"] = path
    if missing:
        raise DataError(
            f"{next(iter(indices.values())).parent.parent} lacks {len(missing)} entries of its "
            "pictures: encode them with tools/cache_latents.py"
        )
    return Selection(dict(sorted(selected.items())), left_out)


def read_arrow(path: Path) -> pa.Table:
    """An Arrow file of streaming format, mapped into memory. Raises `DataError`."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is damaged ({str(error).strip() or type(error).__name__}): remove it and "
            "encode the pictures again; what is whole is not encoded twice"
        ) from error


def _named_by(indices: list[Path]) -> set[bytes]:
    """The keys that the pictures name."""
    named: set[bytes] = set()
    for table in map(read_arrow, indices):
        for keys in table["keys"].to_pylist():
            named.update(keys)
        named.update(key for key in table["weights"].to_pylist() if key is not None)
    return named


def _write(table: pa.Table, folder: Path) -> Path:
    """One batch, named by its keys: the same entries make the same file."""
    table = table.combine_chunks()
    name = hashlib.sha256(b"".join(table["key"].to_pylist())).hexdigest()[:32]
    path = folder / f"{table['kind'][0]}-{name}.arrow"
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path
