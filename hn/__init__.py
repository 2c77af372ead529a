"""Hypernetworks for Stable Diffusion: small MLPs that rewrite what the UNet's attention reads.

>>> import hn
>>> net = hn.load("runs/demo/demo.safetensors")
>>> with hn.attach(pipeline.unet, [(net, 0.8)]):
...     picture = pipeline("a purple heart on a yellow background").images[0]

The names below are the public ones. They are imported when first used: `import hn` itself loads no
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hn.diffusion.attention import Attachment, attach
    from hn.network.description import HypernetworkConfig
    from hn.network.files import load, save
    from hn.network.module import Hypernetwork, HypernetworkModule, transform_context

__version__ = "0.1.0"
__all__ = [
    "Attachment",
    "Hypernetwork",
    "HypernetworkConfig",
    "HypernetworkModule",
    "attach",
    "load",
    "save",
    "transform_context",
]

_HOMES = {
    "Attachment": "hn.diffusion.attention",
    "Hypernetwork": "hn.network.module",
    "HypernetworkConfig": "hn.network.description",
    "HypernetworkModule": "hn.network.module",
    "attach": "hn.diffusion.attention",
    "load": "hn.network.files",
    "save": "hn.network.files",
    "transform_context": "hn.network.module",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hn' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
