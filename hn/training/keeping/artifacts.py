"""The artifact: what users share. Both kinds of file, without what only training needs."""

from pathlib import Path
from typing import Any

from hn.network import files, sharing, sidecar
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from hn.network.sidecar import Sidecar
from hn.storage import write_bytes
from hn.training.optimizers import as_one_group


def shared(net: Hypernetwork) -> Contents:
    """What is written of a hypernetwork: no dropout, which ComfyUI would draw while it paints."""
    return sharing.mended(Contents.of(net))


def write(
    net: Hypernetwork, stem: Path, optimizer_name: str | None, optimizer_state: dict[str, Any]
) -> None:
    """Write `<stem>.safetensors`, `<stem>.pt` and, with an `optimizer_name`, `<stem>.pt.optim`.

    What has no form that other hosts know has no `.pt`, as is said before training.
    The sidecar comes last and carries the hash of the finished `.pt`: so the web UI accepts it, at
    every step. Its state is that of one group, which is all that the web UI loads one into. Raises
    `StorageError`.
    """
    contents = shared(net)
    pt = stem.with_name(f"{stem.name}.pt")
    files.write(contents, stem.with_name(f"{stem.name}.safetensors"))
    if sharing.obstacle(contents) is None:
        files.write(contents, pt)
    if optimizer_name is not None:
        state = Sidecar(
            optimizer_name=optimizer_name,
            file_hash=sidecar.short_hash(pt),
            state=as_one_group(optimizer_state),
        )
        write_bytes(sidecar.beside(pt), sidecar.to_bytes(state))
