"""Hypernetworks in a diffusers pipeline, in the manner of its LoRAs.

    hn.load_hypernetwork(pipe, "my_style.safetensors")
    hn.load_hypernetwork(pipe, "other.pt", strength=0.4)            # reads after the first
    hn.set_hypernetworks(pipe, ["other", "my_style"], [0.4, 1.0])   # these, in this order
    with hn.disabled(pipe):
        ...
    hn.unload_hypernetworks(pipe)                                   # as if nothing had been

They follow the pipeline to its device and precision. Pipelines that share a UNet share them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

import hn
from hn.diffusion.attending.strength import Choice, Strength, check_number
from hn.diffusion.attention import Attachment, attach
from hn.errors import ModelError, OptionError, UserError, meant, shown
from hn.network.module import Hypernetwork

Names = str | Sequence[str]
_ATTRIBUTE = "hypernetworks"  # of the UNet that reads through them


def load_hypernetwork(
    pipe: Any,
    path_or_repo: str | PathLike[str],
    adapter_name: str | None = None,
    strength: Choice = 1.0,
) -> str:
    """Load a file or repository, and let the pipeline read through it after those in use.

    Returns its name: the `adapter_name`, or the file's without ending. Raises `OptionError` if
    that name is taken or the strength is none, `ModelError` if the file cannot be used or is for
    another base model; the pipeline is as before then.
    """
    adapters = _Adapters.of(pipe)
    _check_strength(strength)
    net = hn.load(path_or_repo)
    name = adapter_name or _default_name(path_or_repo, net)
    if name in adapters.loaded:
        raise OptionError(
            f"a hypernetwork {shown(name)} is loaded already: give another adapter_name, or unload "
            "it first"
        )
    adapters.move(net)
    adapters.change({**adapters.loaded, name: net}, [*adapters.stack, (name, strength)])
    return name


def set_hypernetworks(
    pipe: Any, names: Names, strengths: Choice | Sequence[Choice] | None = None
) -> None:
    """Let the pipeline read through exactly these, in this order; others stay loaded.

    `strengths` is one for all or one for each; without it, each keeps the one it had last, or 1. A
    name given twice is applied twice. Raises `OptionError` for an unknown name, or if the numbers
    of names and strengths differ.
    """
    adapters = _Adapters.of(pipe)
    names = [names] if isinstance(names, str) else list(names)
    adapters.check_names(names)
    if strengths is None:
        strengths = [adapters.last.get(name, 1.0) for name in names]
    elif not isinstance(strengths, Sequence):
        strengths = [strengths] * len(names)
    if len(strengths) != len(names):
        raise OptionError(
            f"{len(names)} names need as many strengths, or one for all; found {len(strengths)}"
        )
    for strength in strengths:
        _check_strength(strength)
    adapters.change(adapters.loaded, list(zip(names, strengths, strict=True)))


def unload_hypernetworks(pipe: Any, names: Names | None = None) -> None:
    """Let go of these, or of all; after the last one the pipeline is exactly as it was.

    Raises `OptionError` for an unknown name.
    """
    adapters = _Adapters.of(pipe)
    gone = adapters.loaded if names is None else [names] if isinstance(names, str) else names
    adapters.check_names(gone)
    kept = {name: net for name, net in adapters.loaded.items() if name not in gone}
    adapters.change(kept, [entry for entry in adapters.stack if entry[0] in kept])


@contextmanager
def disabled(pipe: Any) -> Iterator[None]:
    """Give the pipeline its own attention back for a while."""
    adapters = _Adapters.of(pipe)
    adapters.suspend(+1)
    try:
        yield
    finally:
        adapters.suspend(-1)


def loaded_hypernetworks(pipe: Any) -> list[str]:
    """The names of all that are loaded, in use or not."""
    return list(_Adapters.of(pipe).loaded)


def active_hypernetworks(pipe: Any) -> list[tuple[str, Choice]]:
    """The names and strengths of those in use, in the order in which they are applied."""
    return list(_Adapters.of(pipe).stack)


class _Adapters:
    """What is loaded into a UNet, and which of it is in use; kept by the UNet while needed."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.pipe: Any = None
        self.loaded: dict[str, Hypernetwork] = {}
        self.stack: list[tuple[str, Choice]] = []
        self.last: dict[str, Choice] = {}
        self._unet = unet
        self._attachment: Attachment | None = None
        self._suspended = 0

    @classmethod
    def of(cls, pipe: Any) -> "_Adapters":
        """Those of the pipeline's UNet. Raises `ModelError` as `unet_of` does."""
        unet = unet_of(pipe)
        adapters = getattr(unet, _ATTRIBUTE, None) or cls(unet)
        adapters.pipe = pipe  # the scheduler in use is that of the pipeline seen last
        return adapters

    def check_names(self, names: Sequence[str] | dict[str, Hypernetwork]) -> None:
        """Refuse a name that is not loaded. Raises `OptionError`."""
        for name in names:
            if name not in self.loaded:
                raise OptionError(
                    f"no hypernetwork {shown(name)} is loaded{meant(str(name), self.loaded)}; "
                    f"loaded: {', '.join(self.loaded) or 'none'}"
                )

    def move(self, net: Hypernetwork) -> None:
        """Bring it where the UNet is; if that is offloaded or packed, the first use does."""
        device, dtype = self._unet.device, self._unet.dtype
        if device.type != "meta" and dtype.itemsize > 1:
            net.to(device, dtype)

    def change(self, loaded: dict[str, Hypernetwork], stack: list[tuple[str, Choice]]) -> None:
        """Have these loaded and those in use, or else what there was before."""
        before = self.loaded, self.stack
        self.loaded, self.stack = loaded, stack
        try:
            self._refresh()
        except UserError:
            self.loaded, self.stack = before
            self._refresh()
            raise
        self.last = {**self.last, **dict(stack)}

    def suspend(self, more: int) -> None:
        """Count who wants the UNet without them."""
        self._suspended += more
        self._refresh()

    def _refresh(self) -> None:
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None
        if self.stack and not self._suspended:
            stack = [(self.loaded[name], strength) for name, strength in self.stack]
            self._attachment = attach(
                self._unet, stack, follow=True, timesteps=lambda: self.pipe.scheduler.timesteps
            )
        if self.loaded or self._suspended:
            setattr(self._unet, _ATTRIBUTE, self)
        elif hasattr(self._unet, _ATTRIBUTE):
            delattr(self._unet, _ATTRIBUTE)


def unet_of(pipe: Any) -> UNet2DConditionModel:
    """The UNet of a pipeline. Raises `ModelError` if it has none of the right kind."""
    unet = getattr(pipe, "unet", None)
    unet = getattr(unet, "_orig_mod", unet)  # compiled
    if not isinstance(unet, UNet2DConditionModel):
        raise ModelError(
            f"{type(pipe).__name__} has no UNet of a Stable Diffusion 1, 2 or XL; hypernetworks "
            "are for pipelines that have"
        )
    return unet


def _check_strength(strength: Any) -> None:
    if not isinstance(strength, Strength):
        check_number(strength, "strength")


def _default_name(path_or_repo: str | PathLike[str], net: Hypernetwork) -> str:
    path = Path(path_or_repo)
    return path.stem if path.is_file() else net.provenance.name or path.name
