"""The tokenizer of all Stable Diffusions, which single files leave out.

`merges.txt.gz` are the byte pairs of OpenAI's CLIP (github.com/openai/CLIP, MIT licence), which
every file's embeddings are numbered by.
"""

import gzip
from importlib.resources import files
from itertools import chain
from typing import Any

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # tokens of a chunk, with start and end
WORD_END = "</w>"


def build_tokenizer(padding: str = END) -> CLIPTokenizer:
    """The tokenizer; Stable Diffusion 2 was trained with another `padding` than 1."""
    merges: Any = _merges()  # pairs, whatever transformers' annotation says
    symbols = [*_printable_bytes(), *(f"{byte}{WORD_END}" for byte in _printable_bytes())]
    vocabulary = [*symbols, *(first + second for first, second in merges), START, END]
    return CLIPTokenizer(
        {token: number for number, token in enumerate(vocabulary)},
        merges,
        pad_token=padding,
        model_max_length=LENGTH,
    )


def _merges() -> list[tuple[str, str]]:
    """Pairs of tokens that become one, the commonest first."""
    packed = files("hn.diffusion.single_file").joinpath("merges.txt.gz").read_bytes()
    pairs = (line.split(" ") for line in gzip.decompress(packed).decode().split("\n"))
    return [(first, second) for first, second in pairs]


def _printable_bytes() -> list[str]:
    """A character for each byte, in CLIP's order; those that cannot be seen are from 256 on."""
    seen = list(chain(range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100)))
    hidden = 256 - len(seen)
    return [chr(code) for code in chain(seen, range(256, 256 + hidden))]
