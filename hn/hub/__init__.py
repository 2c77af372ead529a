"""The Hugging Face Hub: hypernetworks as model repositories, encoded pictures as datasets."""

from hn.hub.caches import fetch_cache, push_cache
from hn.hub.repository import check_destination

__all__ = ["check_destination", "fetch_cache", "push_cache"]
