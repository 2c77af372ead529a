"""What is learnt, dealt out to the processes by DeepSpeed (ZeRO stage 2, arXiv 1910.02054): of the
averaged gradients and of the optimizer's state each holds a part. The weights stay whole.

DeepSpeed adds up the gradients while the backward pass goes on; its step waits for us, so that the
guard sees, clips and refuses gradients as in any other run. The optimizer's state goes out and in
as that of whole tensors: a checkpoint is that of any other run, of any number of processes.
"""

from contextlib import nullcontext
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hn.diffusion.sharding import import_deepspeed, settings_of_deepspeed
from hn.errors import OptionError
from hn.training.gradients import Gradients, norm_of

BUCKET = 2**23  # how many gradients are exchanged at once: 32 MiB that are held twice


def check(accelerator: Accelerator) -> None:
    """Raises `OptionError` where nothing can be dealt out: for one process, for a loss that is
    scaled (float16), without DeepSpeed.
    """
    if accelerator.num_processes == 1 or accelerator.mixed_precision == "fp16":
        raise OptionError(
            "shard_optimizer is for several processes, and for mixed_precision bf16 or no; found "
            f"{accelerator.num_processes} and {accelerator.mixed_precision}. Leave it out, or "
            "launch as accelerate_configs/deepspeed_zero2.yaml does"
        )
    import_deepspeed()


def deal_out(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, "PartitionedOptimizer", "PartitionedGradients"]:
    """In place of `accelerator.prepare`: the model as it is to be called, its optimizer, with the
    state it has, and its gradients.
    """
    state, weights = optimizer.state_dict(), sum(it.numel() for it in model.parameters())
    settings = settings_of_deepspeed(
        stage=2,
        overlap_comm=False,
        reduce_bucket_size=min(weights, BUCKET),
        allgather_bucket_size=BUCKET,
        compute_grad_norm=False,  # the guard does
    )
    called = accelerator.prepare_model(model, evaluation_mode=True)  # autocast alone, no DDP
    engine, *_ = import_deepspeed().initialize(model=called, optimizer=optimizer, config=settings)
    # accelerate knows it as any other module: it asks for `no_sync`, and says when to synchronise.
    engine.no_sync = nullcontext
    engine.register_forward_pre_hook(
        lambda *_: engine.set_gradient_accumulation_boundary(accelerator.sync_gradients)
    )
    partitioned = PartitionedOptimizer(accelerator, engine)
    partitioned.load_state_dict(state)
    return engine, partitioned, PartitionedGradients(accelerator, engine)


class PartitionedGradients(Gradients):
    """The parts of averaged gradients that this process holds, from the last backward pass on."""

    def __init__(self, accelerator: Accelerator, engine: Any) -> None:
        self._accelerator = accelerator
        self._zero = engine.optimizer

    def held(self) -> list[Tensor]:
        """Those of this process."""
        return [part for parts in self._zero.averaged_gradients.values() for part in parts]

    def norm(self, held: list[Tensor]) -> Tensor:
        """Of those of all processes, which must ask together."""
        norms: Any = self._accelerator.gather(norm_of(held)[None])
        return torch.linalg.vector_norm(norms)


class PartitionedOptimizer:
    """Steps the parts of this process, and gives all processes all weights.

    DeepSpeed lays the weights of a group one after the other, and cuts that into equal parts. The
    state here is that of the plain optimizer, of whole weights: processes must ask for it together.
    """

    step_was_skipped = False  # no loss is scaled

    def __init__(self, accelerator: Accelerator, engine: Any) -> None:
        self._accelerator = accelerator
        self._engine = engine
        self._zero = engine.optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the plain optimizer, each of one parameter: the part of this process."""
        return self._zero.optimizer.param_groups

    def step(self) -> None:
        """Step with the gradients of the last backward pass."""
        self._zero.refresh_fp32_params()  # weights may have been loaded, or scaled back
        self._engine.step()

    def state_dict(self) -> dict[str, Any]:
        """As the plain optimizer's."""
        found, state, groups = self._zero.optimizer.state_dict(), {}, []
        for group, numbers in enumerate(self._numbers()):
            groups.append({**found["param_groups"][group], "params": numbers})
            for name, part in found["state"].get(group, {}).items():
                for number, piece in zip(numbers, self._pieces(group, part), strict=True):
                    state.setdefault(number, {})[name] = piece
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take the parts of this process of a plain optimizer's state."""
        state, groups = {}, []
        for group, numbers in enumerate(self._numbers()):
            groups.append({**saved["param_groups"][group], "params": [group]})
            known = {i: saved["state"][n] for i, n in enumerate(numbers) if n in saved["state"]}
            for name in next(iter(known.values()), ()):
                pieces = {i: values[name] for i, values in known.items()}
                state.setdefault(group, {})[name] = self._part(group, pieces)
        self._zero.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _numbers(self) -> list[list[int]]:
        """Of each group, the numbers of its weights, as the plain optimizer counts them."""
        numbers = count()
        return [[next(numbers) for _ in weights] for weights in self._zero.bit16_groups]

    def _pieces(self, group: int, part: Any) -> list[Any]:
        """Of a state in parts (N / processes,), what each weight has; of a number, the same."""
        weights = self._zero.bit16_groups[group]
        if not _is_dealt_out(part):
            return [part] * len(weights)
        gathered: Any = self._accelerator.gather(part)
        whole = gathered.cpu()  # on a device there may be no room for all of them
        return [whole[_place(weight)].view_as(weight) for weight in weights]

    def _part(self, group: int, pieces: dict[int, Any]) -> Any:
        """The inverse of `_pieces`; what a weight lacks is 0."""
        first, weights = next(iter(pieces.values())), self._zero.bit16_groups[group]
        if not _is_dealt_out(first):
            return first
        whole = torch.zeros_like(self._zero.bit16_groups_flat[group], dtype=first.dtype)
        for i, piece in pieces.items():
            whole[_place(weights[i])] = piece.flatten()
        parts = whole.chunk(self._accelerator.num_processes)
        return parts[self._accelerator.process_index].clone()


def _is_dealt_out(state: Any) -> bool:
    """Whether it has a number for every weight, and not one for all, such as Adam's `step`."""
    return isinstance(state, Tensor) and state.dim() > 0


def _place(weight: Tensor) -> slice:
    """Where a weight lies among those of its group, of whose storage it is a view."""
    return slice(weight.storage_offset(), weight.storage_offset() + weight.numel())
