"""Text contexts by prompt: each is encoded once, and kept in memory and in the cache."""

import json
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from hn.data.cache.store import Store, key_of
from hn.data.cache.workers import ALONE, Workers
from hn.diffusion.base_model import BaseModel
from hn.diffusion.condition import Condition

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
        absent = [prompts[place] for place in self._store.missing([*map(self.key, prompts)])]
        workers.wait()  # all have looked before one writes
        starts = range(0, len(absent), PER_SHARD)[workers.rank :: workers.count]
        bar = tqdm(starts, "encoding prompts", unit="shard", leave=False) if starts else ()
        for start in bar:
            shard = absent[start : start + PER_SHARD]
            contexts = [it.context[0] for it in self._encode(shard)]
            self._store.write("context", [*map(self.key, shard)], contexts)
        workers.wait()
        self._store.refresh()
        return len(absent)

    def encode(self, prompts: Iterable[str]) -> None:
        """Take into memory those that are not there yet."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if self._store is not None and new:
            keys = [*map(self.key, new)]
            absent = self._store.missing(keys)
            stored = [place for place in range(len(new)) if place not in absent]
            contexts = [
                Condition(context=context[None])
                for context in self._store.read([keys[place] for place in stored])
            ]
            self._take([new[place] for place in stored], contexts)
            new = [new[place] for place in absent]
        self._take(new, self._encode(new))

    def stack(self, prompts: list[str]) -> Condition:
        """Of these prompts, on the CPU; beyond `KEPT` the oldest are forgotten."""
        self.encode(prompts)
        contexts = Condition.join([self._known[prompt] for prompt in prompts])
        while self._bytes > KEPT:
            self._bytes -= self._known.pop(next(iter(self._known))).nbytes
        return contexts

    def key(self, prompt: str) -> bytes:
        """The key of a prompt's context in the store."""
        return key_of("context", json.dumps(self._base.text_identity), prompt)

    def _take(self, prompts: Sequence[str], contexts: Sequence[Condition]) -> None:
        self._known |= zip(prompts, contexts, strict=True)
        self._bytes += sum(context.nbytes for context in contexts)

    def _encode(self, prompts: Sequence[str]) -> list[Condition]:
        if not prompts:
            return []  # of an encoder that may be gone
        return [it.to("cpu") for it in self._base.encode_prompts(list(prompts))]
