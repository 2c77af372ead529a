"""Hypernetworks for Stable Diffusion: small MLPs that rewrite what the UNet's attention reads.

>>> import hn
>>> net = hn.load("runs/demo/demo.safetensors")
>>> with hn.attach(pipeline.unet, [(net, 0.8)]):
...     picture = pipeline("a purple heart on a yellow background").images[0]

or, in the manner of diffusers' LoRAs,

>>> hn.load_hypernetwork(pipeline, "runs/demo/demo.safetensors", strength=0.8)
>>> picture = pipeline("a purple heart on a yellow background").images[0]

The names below are the public ones. They are imported when first used: `import hn` itself loads no
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hn.diffusion.adapters import (
        active_hypernetworks,
        disabled,
        load_hypernetwork,
        loaded_hypernetworks,
        set_hypernetworks,
        unload_hypernetworks,
    )
    from hn.diffusion.attending.strength import Strength
    from hn.diffusion.attention import Attachment, attach
    from hn.diffusion.surgery.folding import Folding, fold
    from hn.diffusion.tags import find_hypernetwork, parse_prompt_tags
    from hn.network.description import HypernetworkConfig
    from hn.network.files import load, save
    from hn.network.module import Hypernetwork, HypernetworkModule, transform_context

__version__ = "0.1.0"
__all__ = [
    "Attachment",
    "Folding",
    "Hypernetwork",
    "HypernetworkConfig",
    "HypernetworkModule",
    "Strength",
    "active_hypernetworks",
    "attach",
    "disabled",
    "find_hypernetwork",
    "fold",
    "load",
    "load_hypernetwork",
    "loaded_hypernetworks",
    "parse_prompt_tags",
    "save",
    "set_hypernetworks",
    "transform_context",
    "unload_hypernetworks",
]

_HOMES = {
    "Attachment": "hn.diffusion.attention",
    "Folding": "hn.diffusion.surgery.folding",
    "Hypernetwork": "hn.network.module",
    "HypernetworkConfig": "hn.network.description",
    "HypernetworkModule": "hn.network.module",
    "Strength": "hn.diffusion.attending.strength",
    "active_hypernetworks": "hn.diffusion.adapters",
    "attach": "hn.diffusion.attention",
    "disabled": "hn.diffusion.adapters",
    "find_hypernetwork": "hn.diffusion.tags",
    "fold": "hn.diffusion.surgery.folding",
    "load": "hn.network.files",
    "load_hypernetwork": "hn.diffusion.adapters",
    "loaded_hypernetworks": "hn.diffusion.adapters",
    "parse_prompt_tags": "hn.diffusion.tags",
    "save": "hn.network.files",
    "set_hypernetworks": "hn.diffusion.adapters",
    "transform_context": "hn.network.module",
    "unload_hypernetworks": "hn.diffusion.adapters",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hn' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
