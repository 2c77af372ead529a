"""Optimizers by name: any class of torch.optim, AdamW8bit, or any importable `package.Class`."""

import ast
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch.nn import Parameter

from hn.config import OptimizerConfig
from hn.errors import OptionError


def build_optimizer(
    parameters: Iterable[Parameter], config: OptimizerConfig, rate: float
) -> torch.optim.Optimizer:
    """Make the optimizer. Raises `OptionError` for an unknown class or argument."""
    cls: Any = _eight_bit_adam() if config.use_8bit_adam else find_class(config.optimizer)
    arguments = parse_arguments(config.optimizer_args)
    try:
        return cls(parameters, lr=rate, **arguments)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"optimizer {cls.__name__} refuses its settings {arguments}: {error}"
        ) from error


def find_class(name: str) -> type[torch.optim.Optimizer]:
    """A class of torch.optim by its name, or any other by its dotted path."""
    package, _, cls_name = name.rpartition(".")
    try:
        cls = getattr(import_module(package or "torch.optim"), cls_name)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"optimizer '{name}' is not found ({error}). Give a class of torch.optim, such as "
            "AdamW, or the dotted path of an installed one."
        ) from error
    if (
        not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer))
        or cls is torch.optim.Optimizer
    ):
        raise OptionError(f"optimizer '{name}' is not an optimizer class")
    return cls


def parse_arguments(arguments: Iterable[str]) -> dict[str, Any]:
    """`weight_decay=0.1` and the like, their values read as Python literals."""
    parsed = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name.isidentifier() or name == "lr":
            raise OptionError(
                f"optimizer_args '{argument}' is not name=value (the rate is learning_rate)"
            )
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[name] = value
    return parsed


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all groups the rate of this step, also over one that a loaded state brought."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _eight_bit_adam() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise OptionError(
            "use_8bit_adam needs the package bitsandbytes: pip install bitsandbytes"
        ) from error
    return AdamW8bit
