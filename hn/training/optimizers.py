"""Optimizers by name: any class of torch.optim, AdamW8bit, or any importable `package.Class`."""

import ast
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from hn.config import OptimizerConfig
from hn.errors import OptionError
from hn.limits.learning import finds_its_rate, parse_width_rates
from hn.network.module import Hypernetwork
from hn.training.schedule import parse

RATE_FACTOR = "rate_factor"  # in a group of an optimizer: what the rate of a step is multiplied by
LEAST_FACTOR = 0.1  # a learning_rate below is meant for an optimizer that does not find its rate
KERNEL = "fused"  # in a group of torch's optimizers: how it computes, nothing that it learnt
_KERNELS = {KERNEL, "foreach", "capturable", "differentiable"}  # who gives one of them has chosen
EXTRA = ("prodigyopt", "schedulefree", "lion_pytorch")  # packages of the extra `optimizers`


def build_optimizer(
    hypernetwork: Hypernetwork, config: OptimizerConfig, rate: float, *, scaled: bool = False
) -> torch.optim.Optimizer:
    """Make the optimizer. Raises `OptionError` for an unknown class, argument or width.

    Where the loss is `scaled` (float16), the scaler skips steps and says so; of a fused kernel it
    could not tell.
    """
    factors = parse_width_rates(config.width_learning_rates)
    return optimizer_of(_groups(hypernetwork, factors), config, rate, fused=not scaled)


def optimizer_of(
    parameters: Any, config: OptimizerConfig, rate: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """The optimizer of any parameters or groups, by one kernel for all tensors where torch has it.

    Raises `OptionError`, as above.
    """
    cls: Any = _eight_bit_adam() if config.use_8bit_adam else find_class(config.optimizer)
    arguments = parse_arguments(config.optimizer_args)
    if fused and _has_fused_kernel(cls) and arguments.keys().isdisjoint(_KERNELS):
        arguments[KERNEL] = True
    try:
        return cls(parameters, lr=rate, **arguments)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"optimizer {cls.__name__} refuses its settings {arguments}: {error}"
        ) from error


def _has_fused_kernel(cls: type[torch.optim.Optimizer]) -> bool:
    """Whether torch has one on every device; Adagrad's is for CPUs only."""
    return cls in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)


def find_class(name: str) -> type[torch.optim.Optimizer]:
    """A class of torch.optim by its name, or any other by its dotted path."""
    package, _, cls_name = name.rpartition(".")
    try:
        cls = getattr(import_module(package or "torch.optim"), cls_name)
    except (ImportError, AttributeError) as error:
        missing = isinstance(error, ImportError) and package.partition(".")[0] in EXTRA
        raise OptionError(
            f"optimizer '{name}' is not found ({error}). "
            + (
                "Install its package: pip install -e '.[optimizers]'"
                if missing
                else "Give a class of torch.optim, such as AdamW, or the dotted path of an "
                "installed one."
            )
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


PAGED = "Paged"  # begins the name of what bitsandbytes moves to the host's memory and back


def is_paged(config: OptimizerConfig) -> bool:
    """Whether its state moves between the memory of a GPU and the host's."""
    return config.optimizer.rpartition(".")[2].startswith(PAGED)


@lru_cache
def state_bytes(config: OptimizerConfig, weights: int) -> int:
    """Bytes of an optimizer's state for so many of weights: one is made, and asked.

    A paged one has as many as the one that is not; one that takes no step here (it wants a GPU), as
    many as Adam. Raises `OptionError`, as `optimizer_of`.
    """
    config = replace(config, optimizer=config.optimizer.replace(PAGED, ""))
    weight = nn.Parameter(torch.zeros(256, 64))
    weight.grad = torch.full_like(weight, 1e-3)
    optimizer = optimizer_of([weight], config, 1e-3)
    if hasattr(optimizer, "train"):
        optimizer.train()  # type: ignore[operator]  # of those that are free of a schedule
    try:
        optimizer.step()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # as packages say it
        return 2 * weights  # as Adam
    state = [it for it in optimizer.state[weight].values() if isinstance(it, Tensor)]
    return round(weights * sum(it.nbytes for it in state if it.numel() > 1) / weight.nbytes)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Give all groups the rate of this step, times their factor, also over one that a loaded state
    brought; returns the rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE_FACTOR, 1.0)
    return rate


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """As its `zero_grad`, for which accelerate looks at its signature every time (0.1 ms)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def as_one_group(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's `state_dict()` as that of one group with the rate of factor 1, for any kernel.

    Groups are made of widths in the order of the parameters, so their numbers stay.
    """
    first, *others = state["param_groups"]
    merged = {name: value for name, value in first.items() if name != RATE_FACTOR}
    if KERNEL in merged:
        merged[KERNEL] = None
    merged["lr"] = first["lr"] / first.get(RATE_FACTOR, 1.0)
    merged["params"] = [number for group in (first, *others) for number in group["params"]]
    return {**state, "param_groups": [merged]}


def _groups(hypernetwork: Hypernetwork, factors: dict[int, float]) -> Any:
    """The parameters; where widths have factors of the rate, in a group for each width."""
    unknown = sorted(set(factors) - set(hypernetwork.dims))
    if unknown:
        raise OptionError(
            f"width_learning_rates: the hypernetwork has no width {unknown[0]}; it has "
            f"{' '.join(map(str, hypernetwork.dims))}"
        )
    if not factors:
        return hypernetwork.parameters()
    return [
        {
            "params": [
                parameter
                for part in hypernetwork.parts()
                if part.dim == dim
                for parameter in part.module.parameters()
            ],
            RATE_FACTOR: factors.get(dim, 1.0),
        }
        for dim in hypernetwork.dims
    ]


def _eight_bit_adam() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise OptionError(
            "use_8bit_adam needs the package bitsandbytes: pip install bitsandbytes"
        ) from error
    return AdamW8bit


def remark(config: OptimizerConfig) -> str | None:
    """What is odd about a rate, if anything is."""
    if not finds_its_rate(config.optimizer):
        return None
    if max(stage.rate for stage in parse(config.learning_rate, sys.maxsize)) >= LEAST_FACTOR:
        return None
    return (
        f"{config.optimizer} finds the rate by itself and multiplies it with learning_rate, for "
        f"which 1 is usual; found {config.learning_rate}"
    )
