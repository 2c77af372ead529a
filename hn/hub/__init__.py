"""The Hugging Face Hub: encoded pictures as a dataset repository, pushed and fetched."""

from hn.hub.caches import check_destination, fetch_cache, push_cache

__all__ = ["check_destination", "fetch_cache", "push_cache"]
