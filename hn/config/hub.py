"""The settings of publishing; standard library only."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Publishing on the Hugging Face Hub."""

    push_to_hub: bool = False
    """Publish the hypernetwork as a model repository with a card, in the background. It needs
    hub_model_id, and a token that may write (hf auth login, or HF_TOKEN). What cannot be uploaded
    stops no run: tools/push.py does it later."""
    hub_model_id: str | None = None
    """The repository, owner/name; it is made where it is missing."""
    hub_strategy: Literal["end", "every_save", "all"] = "end"
    """end: the finished hypernetwork. every_save: each checkpoint's hypernetwork, too, as a commit
    of its own. all: each checkpoint with what resuming needs, so that --resume_from_checkpoint
    hub:owner/name goes on from it anywhere."""
    hub_public: bool = False
    """For everyone to see; off: for you alone, since the pictures may be yours alone."""
    hub_license: str | None = None
    """Licence in the card by its id on the hub, such as mit or creativeml-openrail-m."""
