"""A hypernetwork of another structure that learns to give what others give, on given contexts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hn.errors import ModelError, shown
from hn.network.activations import make_activation
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig, Provenance
from hn.network.module import Hypernetwork, Sides
from hn.network.portability import OVER_BATCH
from hn.network.surgery import regression
from hn.network.surgery.affine import WIDE, Affine, is_linear, name_of
from hn.network.surgery.regression import Covariances
from hn.network.surgery.resizing import from_affine

KEPT = 32  # contexts of each layer in each forward
BATCH = 512
RATE = 2e-3


Teachers = Sequence[tuple[Hypernetwork, Sides]]


class Rows:
    """Some of the contexts (N, D) of a layer and what is added to them, each as likely as it
    weighs.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.dim = dim
        self._generator = torch.Generator().manual_seed(dim)
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, x: Tensor, added: Mapping[str, Tensor], weights: Tensor) -> None:
        """Take in contexts (N, D), what they get added by side, and their weights (N,)."""
        chosen = torch.multinomial(
            weights.float().cpu(), min(KEPT, len(x)), generator=self._generator
        )
        rows = chosen.to(x.device)
        k, v = added["k"][rows].float().cpu(), added["v"][rows].float().cpu()
        self._parts.append((x[rows].float().cpu(), k, v))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Contexts, and what keys and values get added, each (N, D)."""
        return tuple(torch.cat(it) for it in zip(*self._parts, strict=True))


@dataclass(frozen=True)
class Lessons:
    """Of every width: contexts, and what keys and values get added (N, D)."""

    by_dim: Mapping[int, tuple[Tensor, ...]]

    @classmethod
    def of(cls, layers: Mapping[str, Rows]) -> "Lessons":
        """Those of layers of one width together."""
        by_dim: dict[int, list[tuple[Tensor, ...]]] = {}
        for rows in layers.values():
            by_dim.setdefault(rows.dim, []).append(rows.tensors)
        return cls(
            {
                dim: tuple(torch.cat(it) for it in zip(*parts, strict=True))
                for dim, parts in sorted(by_dim.items())
            }
        )

    def side(self, dim: int, side: str) -> tuple[Tensor, Tensor]:
        """Contexts, and what is added."""
        x, *added = self.by_dim[dim]
        return x, added["kv".index(side)]


Errors = dict[tuple[int, str], float]


@torch.no_grad()
def errors_of(student: Hypernetwork, lessons: Lessons) -> Errors:
    """Relative errors (root mean square) of what is added, by width and side."""
    found = {}
    for dim in student.dims:
        for side in "kv":
            x, added = lessons.side(dim, side)
            given = student.module(dim, side).linear(x)
            found[dim, side] = float((given - added).norm() / added.norm().clamp(min=1e-30))
    return found


def as_text(before: Errors, after: Errors) -> str:
    """Errors by width and side, in words."""
    return "\n".join(
        f"width {dim:<8} {'keys' if side == 'k' else 'values':<7} error {before[dim, side]:.2%} -> "
        f"{error:.2%}"
        for (dim, side), error in after.items()
    )


def start(teachers: Teachers, config: HypernetworkConfig, seed: int = 0) -> Hypernetwork:
    """A student that has learnt nothing yet; with the weights of a teacher of the same layers.

    Raises `ModelError` for teachers whose outputs depend on what is painted beside.
    """
    for net, _ in teachers:
        if net.config.activation_func in OVER_BATCH:
            raise ModelError(
                f"{name_of(net)} has the activation {shown(net.config.activation_func)}, which "
                "runs over the batch: what it gives for one context cannot be learnt"
            )
    told = ", ".join(f"{name_of(net)} ({strength})" for net, strength in teachers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Hypernetwork(config, Provenance(optional_info=f"distilled from {told}"))
    if len(teachers) == 1 and teachers[0][1] == 1:
        _copy_layers(teachers[0][0], student)
    return student


def structure_for(
    teachers: Teachers, layer_structure: tuple[float, ...] | None, activation_func: str
) -> HypernetworkConfig:
    """A structure for all widths of the teachers; their own, where nothing else is asked for.

    Raises `ModelError` for what is none, or for an activation that nobody knows.
    """
    make_activation(activation_func)
    return HypernetworkConfig(
        dims=tuple(dict.fromkeys(dim for net, _ in teachers for dim in net.dims)),
        layer_structure=layer_structure or teachers[0][0].config.layer_structure,
        activation_func=activation_func,
    )


def teach(student: Hypernetwork, lessons: Lessons, steps: int, seed: int = 0) -> Hypernetwork:
    """The student with what it can learn: by least squares if it is linear, else by Adam."""
    if is_linear(student):
        return _solved(student, lessons)
    modules = [(dim, side) for dim in student.dims for side in "kv"]
    with tqdm(total=len(modules) * steps, desc="distilling", unit="step", leave=False) as bar:
        for dim, side in modules:
            _train(student.module(dim, side).linear, *lessons.side(dim, side), steps, seed, bar)
    return student


def _copy_layers(teacher: Hypernetwork, student: Hypernetwork) -> None:
    """Begin where the teacher is, if linear layers are of the same sizes, and all there is."""
    before, after = Contents.of(teacher).with_dropout(), Contents.of(student)
    if teacher.config.is_layer_norm or set(teacher.dims) != set(student.dims):
        return
    shapes = [[tensor.shape for tensor in it.packed().values()] for it in (before, after)]
    if shapes[0] == shapes[1] and teacher.dims == student.dims:
        student.take_weights(before.build())


def _solved(student: Hypernetwork, lessons: Lessons) -> Hypernetwork:
    structure = student.config.layer_structure
    changes: dict[tuple[int, str], Affine] = {}
    for dim in student.dims:
        rank = min(int(dim * multiplier) for multiplier in structure)
        for side in "kv":
            changes[dim, side] = _least_squares(*lessons.side(dim, side), rank)
    return from_affine(changes, structure, student.provenance).net


def _least_squares(x: Tensor, added: Tensor, rank: int) -> Affine:
    """The matrix of that rank, and bias, nearest to what is `added` to contexts `x` (N, D)."""
    x, y = x.to(WIDE), added.to(WIDE)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    seen = Covariances(x.T @ x / len(x), y.T @ x / len(x), float(y.square().sum() / len(x)))
    matrix = regression.fit(seen, rank).matrix
    return Affine(matrix, y_mean - matrix @ x_mean)


@torch.enable_grad()
def _train(layers: nn.Module, x: Tensor, added: Tensor, steps: int, seed: int, bar: tqdm) -> None:
    """Adam with a rate that falls as a cosine, on batches drawn from the rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers, x, added = layers.to(device), x.to(device), added.to(device)
    size = added.square().mean().clamp(min=1e-30)
    optimizer = torch.optim.Adam(layers.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator).to(device)
        loss = (layers(x[rows]) - added[rows]).square().mean() / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update()
    layers.to("cpu")
