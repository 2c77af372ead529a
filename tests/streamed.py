"""Small HF datasets of many shards, as parquet, arrow or webdataset files."""

import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hn.demo.pictures import caption, render, sample_scene

Row = dict[str, Any]


def png(colour: tuple[int, int, int], size: tuple[int, int] = (20, 16), **options: Any) -> bytes:
    """A picture of one colour, as a file."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG", **options)
    return file.getvalue()


def rows(count: int, size: tuple[int, int] = (20, 16)) -> list[Row]:
    """Pictures that all differ, each with its own number as caption."""
    return [
        {"image": png((i % 256, i // 256, 9), size), "text": f"number {i}"} for i in range(count)
    ]


def scenes(count: int, size: tuple[int, int] = (20, 16)) -> list[Row]:
    """Pictures of shapes, with captions that describe them."""
    random, made = Random(0), []
    for _ in range(count):
        scene = sample_scene(random)
        file = io.BytesIO()
        render(scene, side=20).resize(size).save(file, "PNG")
        made.append({"image": file.getvalue(), "text": caption(scene)})
    return made


def write_parquet(folder: Path, made: list[Row], shards: int, text: Any = None) -> str:
    """As parquet, dealt out in turn; row groups of 3."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        dataset = _dataset(made[shard::shards], text)
        name = folder / f"train-{shard:05d}-of-{shards:05d}.parquet"
        dataset.to_parquet(str(name), batch_size=3)
    return str(folder)


def write_arrow(folder: Path, made: list[Row], shards: int) -> str:
    """The same as arrow streams."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        table: Any = _dataset(made[shard::shards], None).data.table
        name = str(folder / f"train-{shard:05d}.arrow")
        with pa.OSFile(name, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return str(folder)


def write_webdataset(folder: Path, made: list[Row], shards: int) -> str:
    """The same as tar files of .png, .txt and .json."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:05d}.tar", "w") as archive:
            for number in range(shard, len(made), shards):
                row = made[number]
                _add(archive, f"{number:05d}.png", row["image"])
                _add(archive, f"{number:05d}.txt", row["text"].encode())
                _add(archive, f"{number:05d}.json", json.dumps({"size": 1}).encode())
    return str(folder)


def _dataset(made: list[Row], text: Any) -> Dataset:
    features = Features({"image": ImageFeature(), "text": text or Value("string")})
    columns = {
        "image": [row["image"] and {"path": None, "bytes": row["image"]} for row in made],
        "text": [row["text"] for row in made],
    }
    return Dataset.from_dict(columns, features=features)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
