"""Text encoders in single files: as transformers names their tensors, or as OpenCLIP does, which
joins queries, keys and values, and multiplies by its projection from the other side.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hn.diffusion.single_file.source import Shapes, Source
from hn.diffusion.single_file.vocabulary import END
from hn.diffusion.surgery.tensor_files import Entry

PROJECTION = "text_projection.weight"
_TOKENS, _POSITIONS = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
_WIDEST = "encoder.layers.{}.mlp.fc1.weight"
_HEAD = 64  # channels of a head
_OPEN_CLIP = {
    _TOKENS: "token_embedding.weight",
    _POSITIONS: "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QKV = re.compile(r"self_attn\.([qkv])_proj")


class Place(NamedTuple):
    """Where a tensor of transformers' is: which third of another, or that one transposed."""

    name: str
    third: int | None = None
    turned: bool = False


def in_transformers(name: str) -> Place:
    """As transformers has it itself."""
    return Place(f"text_model.{name}")


def in_open_clip(name: str) -> Place:
    """As OpenCLIP has it. Raises `KeyError` for what it has not."""
    if name == PROJECTION:
        return Place("text_projection", turned=True)
    match = _LAYER.fullmatch(name)
    if match is None:
        return Place(_OPEN_CLIP[name])
    layer, part, kind = match.groups()
    outer = f"transformer.resblocks.{layer}."
    if (side := _QKV.fullmatch(part)) is not None:
        return Place(f"{outer}attn.in_proj_{kind}", third="qkv".index(side[1]))
    return Place(f"{outer}{_OPEN_CLIP_LAYER[part]}.{kind}")


@dataclass(frozen=True)
class TextLayout:
    """A text encoder behind a `prefix`. `projected`: its pooled output is read, too. `unread`: so
    many of its last layers are not.
    """

    prefix: str
    place: Callable[[str], Place]
    projected: bool = False
    unread: int = 0

    def is_in(self, shapes: Shapes) -> bool:
        """Whether a file has it."""
        return self.prefix + self.place(_TOKENS).name in shapes

    @property
    def activation(self) -> str:
        """OpenAI's approximation, or the exact one."""
        return "quick_gelu" if self.place is in_transformers else "gelu"

    @property
    def padding(self) -> str:
        """The token behind short prompts in training; the tokenizer's own was not OpenCLIP's."""
        return END if self.place is in_transformers else "!"

    def config(self, shapes: Shapes) -> dict[str, Any]:
        """Its config. Raises `KeyError` with the name of what is missing."""
        size, width = shapes[self._outer(_TOKENS)]
        layers = next(n for n in count() if self._outer(_WIDEST.format(n)) not in shapes)
        projection = shapes[self._outer(PROJECTION)][1] if self.projected else None
        return {
            "vocab_size": size,
            "hidden_size": width,
            "intermediate_size": shapes[self._outer(_WIDEST.format(0))][0],
            "num_hidden_layers": layers - self.unread,
            "num_attention_heads": max(1, width // _HEAD),
            "max_position_embeddings": shapes[self._outer(_POSITIONS)][0],
            "hidden_act": self.activation,
            "bos_token_id": size - 2,
            "eos_token_id": size - 1,
            **({} if projection is None else {"projection_dim": projection}),
        }

    def read(self, source: Source, name: str) -> Tensor:
        """The tensor that transformers calls `name`. Raises `KeyError`."""
        place = self.place(name.removeprefix("text_model."))
        tensor = source.read(self.prefix + place.name)
        if place.third is not None:
            tensor = tensor.chunk(3)[place.third]
        return (tensor.T if place.turned else tensor).contiguous()

    def entries(self, folder: Mapping[str, Entry]) -> Iterator[Entry]:
        """What a folder holds by transformers' names, as the file is to hold it."""
        thirds: dict[str, dict[int, Entry]] = {}
        for name, entry in self._complete(folder).items():
            place = self.place(name)
            outer = self.prefix + place.name
            if place.third is None:
                yield _turned(entry, outer) if place.turned else entry._replace(name=outer)
                continue
            parts = thirds.setdefault(outer, {})
            parts[place.third] = entry
            if len(parts) == 3:
                yield _joined([parts[third] for third in range(3)], outer)

    def _complete(self, folder: Mapping[str, Entry]) -> dict[str, Entry]:
        """By short names, without counters, with layers for those unread: programs look for them,
        so the last one is there again.
        """
        inner = {name.removeprefix("text_model."): it for name, it in folder.items()}
        inner = {name: it for name, it in inner.items() if not name.endswith("position_ids")}
        layers = next(n for n in count() if _WIDEST.format(n) not in inner)
        last = f"encoder.layers.{layers - 1}."
        for number in range(layers, layers + self.unread):
            inner |= {
                name.replace(last, f"encoder.layers.{number}."): it
                for name, it in inner.items()
                if name.startswith(last)
            }
        return inner

    def _outer(self, name: str) -> str:
        return self.prefix + self.place(name).name


def _turned(entry: Entry, name: str) -> Entry:
    return Entry(name, entry.dtype, entry.shape[::-1], lambda: entry.load().T)


def _joined(parts: list[Entry], name: str) -> Entry:
    first = parts[0]
    shape = (3 * first.shape[0], *first.shape[1:])
    return Entry(name, first.dtype, shape, partial(_cat, parts))


def _cat(parts: list[Entry]) -> Tensor:
    return torch.cat([part.load() for part in parts])
