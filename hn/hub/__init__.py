"""The Hugging Face Hub: encoded pictures as a dataset repository, pushed and fetched."""

from hn.hub.caches import fetch_cache, push_cache

__all__ = ["fetch_cache", "push_cache"]
