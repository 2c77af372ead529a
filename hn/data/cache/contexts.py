"""What prompts say, by prompt: each is encoded once, and kept in memory and in the cache."""

import json
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from hn.data.cache.store import Store, key_of
from hn.data.cache.tensor_files import OF_PROMPTS
from hn.data.cache.workers import ALONE, Workers
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.views import View

PER_SHARD = 256
KEPT = 2**30  # bytes of contexts in memory; more only come up where tags are shuffled


class Contexts:
    """The contexts of a base model's text encoder; `store` keeps those of `cache`d prompts."""

    def __init__(self, base: BaseModel, store: Store | None = None) -> None:
        self._base = base
        self._store = store
        self._known: dict[str, Condition] = {}
        self._bytes = 0  # of them

    def cache(self, prompts: Iterable[str], workers: Workers = ALONE) -> int:
        """Encode those that the store lacks into it; return how many those were."""
        assert self._store is not None
        prompts = list(dict.fromkeys(prompts))
        absent = [prompts[place] for place in sorted(self._absent(prompts))]
        workers.wait()  # all have looked before one writes
        starts = range(0, len(absent), PER_SHARD)[workers.rank :: workers.count]
        bar = tqdm(starts, "encoding prompts", unit="shard", leave=False) if starts else ()
        for start in bar:
            shard = absent[start : start + PER_SHARD]
            encoded = self._encode(shard)
            for kind, keys in self._keys(shard).items():
                self._store.write(kind, keys, [getattr(it, kind)[0] for it in encoded])
        workers.wait()
        self._store.refresh()
        return len(absent)

    def encode(self, prompts: Iterable[str]) -> None:
        """Take into memory those that are not there yet."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if self._store is not None and new:
            absent = self._absent(new)
            stored = [prompt for place, prompt in enumerate(new) if place not in absent]
            self._take(stored, self._read(stored))
            new = [new[place] for place in sorted(absent)]
        self._take(new, self._encode(new))

    @property
    def sized(self) -> bool:
        """Whether a condition tells how large pictures are, too."""
        return self._base.numbers_told > 0

    def stack(self, prompts: list[str], views: Iterable[View] | None = None) -> Condition:
        """Of these prompts, and of pictures seen so, on the CPU; beyond `KEPT` the oldest are
        forgotten.
        """
        self.encode(prompts)
        contexts = Condition.join([self._known[prompt] for prompt in prompts])
        while self._bytes > KEPT:
            self._bytes -= self._known.pop(next(iter(self._known))).nbytes
        return contexts if views is None else self._base.tell(contexts, views)

    def _keys(self, prompts: Sequence[str]) -> dict[str, list[bytes]]:
        """The keys of prompts in the store, by what is kept of each: pooled text of some models."""
        identity = json.dumps(self._base.text_identity)
        kinds = OF_PROMPTS if self.sized else OF_PROMPTS[:1]
        return {kind: [key_of(kind, identity, prompt) for prompt in prompts] for kind in kinds}

    def _absent(self, prompts: Sequence[str]) -> set[int]:
        """The places of those that the store lacks, or has not all of."""
        assert self._store is not None
        missing = map(self._store.missing, self._keys(prompts).values())
        return {place for places in missing for place in places}

    def _read(self, prompts: Sequence[str]) -> list[Condition]:
        """What the store has of these prompts."""
        assert self._store is not None
        tensors = {kind: self._store.read(keys) for kind, keys in self._keys(prompts).items()}
        columns = zip(*tensors.values(), strict=True)
        return [
            Condition(**{kind: it[None] for kind, it in zip(tensors, row, strict=True)})
            for row in columns
        ]

    def _take(self, prompts: Sequence[str], contexts: Sequence[Condition]) -> None:
        self._known |= zip(prompts, contexts, strict=True)
        self._bytes += sum(context.nbytes for context in contexts)

    def _encode(self, prompts: Sequence[str]) -> list[Condition]:
        if not prompts:
            return []  # of an encoder that may be gone
        return [it.to("cpu") for it in self._base.encode_prompts(list(prompts))]
