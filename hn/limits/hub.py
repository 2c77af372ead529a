"""What the settings of publishing may be."""

import re

from hn.config import HubConfig
from hn.errors import shown


def hub_faults(hub: HubConfig) -> list[str]:
    """What cannot work in how a run is to be published, one line each."""
    if hub.push_to_hub and hub.hub_model_id is None:
        return ["push_to_hub needs hub_model_id: give the repository, such as me/my_style"]
    faults = []
    if hub.hub_license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", hub.hub_license):
        faults.append(
            "hub_license must be a licence's id of small letters, digits and .-, such as mit; "
            f"found {shown(hub.hub_license)}"
        )
    return faults
