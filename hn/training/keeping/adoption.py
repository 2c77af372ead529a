"""The optimizer state that the web UI left beside a hypernetwork, taken over.

Only its moments are: rate, betas and the rest are those of the present settings. (In the web UI the
old rate came back with the state and stayed until the schedule's next stage.)
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hn.errors import ModelError, OptionError, shown
from hn.network import sidecar
from hn.network.sidecar import Sidecar
from hn.training.optimizers import KERNEL

_CHOICES = (
    "adopt_optimizer = always takes it all the same (right for intermediate files of the web UI, "
    "whose hash never matches), never leaves it"
)


def find(path: Path, adopt: str, optimizer: str) -> Sidecar | None:
    """The state beside the `.pt` at `path`, if there is one to adopt for this `optimizer` class.

    Raises `OptionError` for one that does not belong to the file or is another optimizer's: a state
    is never dropped without a word, and `ModelError` for one that cannot be read.
    """
    beside = sidecar.beside(path)
    if not beside.exists():
        if adopt == "always":
            raise OptionError(f"adopt_optimizer is always, but there is no {beside}")
        return None
    if adopt == "never":
        print(f"{beside} is left alone, since adopt_optimizer is never")
        return None
    try:
        found = sidecar.read(beside)
    except ModelError as error:
        raise ModelError(f"{error} adopt_optimizer = never trains without it.") from error
    file_hash = sidecar.short_hash(path)
    if adopt == "matching" and found.file_hash != file_hash:
        raise OptionError(
            f"{beside} was written for another file: its hash is {found.file_hash}, that of {path} "
            f"is {file_hash}. {_CHOICES}."
        )
    if found.optimizer_name != optimizer:
        raise OptionError(
            f"{beside} is the state of {found.optimizer_name}, but the optimizer is {optimizer}: "
            f"set optimizer = {found.optimizer_name}, or adopt_optimizer = never"
        )
    return found


def adopt(optimizer: torch.optim.Optimizer, found: Sidecar) -> None:
    """Give the optimizer the state of its parameters. Raises `OptionError` if it does not fit."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = found.state["state"]
    known = range(len(parameters))
    count = sum(len(group["params"]) for group in found.state["param_groups"])
    faults = [f"it is that of {count} tensors, not of {len(known)}"] if count != len(known) else []
    faults += [f"it has no parameter {shown(number)}" for number in state if number not in known]
    faults += [
        f"{shown(name)} of parameter {number} has the shape {tuple(value.shape)}, not "
        f"{tuple(parameters[number].shape)}"
        for number, values in state.items()
        if number in known
        for name, value in values.items()
        if isinstance(value, Tensor) and not _fits(value, parameters[number])
    ]
    if faults:
        raise OptionError(
            f"the optimizer state beside the hypernetwork does not fit it: {faults[0]}. "
            "adopt_optimizer = never trains without it."
        )
    groups = optimizer.state_dict()["param_groups"]
    _say_changes(found.state["param_groups"][0], groups[0])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _try(optimizer)


def _say_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Name the settings that the state was made with, where others hold now."""
    names = [name for name, value in now.items() if name in before and before[name] != value]
    names = [name for name in names if name not in ("params", "lr", "initial_lr", KERNEL)]
    if names:
        made, goes_on = (
            ", ".join(f"{name} {shown(values[name])}" for name in names) for values in (before, now)
        )
        print(
            f"the optimizer state was made with {made}, and goes on with {goes_on}: optimizer_args "
            "decides"
        )


def _try(optimizer: torch.optim.Optimizer) -> None:
    """Step once on a copy: a state may lack what `optimizer_args` ask for, such as amsgrad's."""
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        trial.step()
    except KeyError as error:
        raise OptionError(
            f"the optimizer state beside the hypernetwork has no {error}, which optimizer_args ask "
            "for: take them back, or train without it, adopt_optimizer = never"
        ) from error


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Of the parameter's shape, or of one along some axes: Adafactor keeps rows and columns."""
    if value.dim() == 0:
        return True
    return value.dim() == parameter.dim() and all(
        size in (1, full) for size, full in zip(value.shape, parameter.shape, strict=True)
    )
