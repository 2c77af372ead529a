"""The cheapest plan that fits: which of a UNet's layers and blocks are computed again.

A ladder of plans leads from keeping everything to keeping the least. First all frozen layers keep
only what they must; then, one by one, what frees the most bytes for each operation done again.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from tqdm import tqdm

from hn.diffusion.memory.costs import Cost, measure
from hn.diffusion.memory.plan import Plan
from hn.diffusion.memory.rehearsal import Step, rehearse


@dataclass(frozen=True)
class Rung:
    """A plan; what it frees of what the first one keeps, about, and does again."""

    plan: Plan
    cost: Cost


def choose(
    step: Step, room: int, *, plain: bool = True, offload: bool = False, quiet: bool = False
) -> Rung:
    """The cheapest plan whose forward and backward pass hold at most `room` bytes; the leanest one
    if there is none. `plain` allows layers that are not frozen-aware, `offload` the host's memory,
    after all else.
    """
    first = Rung(Plan(frozen_aware=not plain), Cost(0, 0))
    if rehearse(step, first.plan) <= room:
        return first
    rungs = climb(step, offload=offload)[0 if plain else 1 :]
    with tqdm(desc="memory plan", unit=" plans", leave=False, disable=quiet) as bar:

        def peak(index: int) -> int:
            bar.update()
            return rehearse(step, rungs[index].plan)

        return rungs[_first_fitting([rung.cost.freed for rung in rungs], peak, room)]


@lru_cache
def climb(step: Step, *, offload: bool = False) -> list[Rung]:
    """The ladder, cheapest plan first."""
    frozen = Plan(frozen_aware=True)
    saved = rehearse(step, Plan()) - rehearse(step, frozen)
    rungs = [Rung(Plan(), Cost(0, 0)), Rung(frozen, Cost(saved, 0))]
    costs = measure(step)
    for name in _in_order(costs):
        plan, so_far = rungs[-1].plan, rungs[-1].cost
        if any(name.startswith(f"{block}.") for block in plan.blocks):
            continue  # a gate of a block that is computed again as a whole
        replaced = plan.gates & _within(name, costs)
        added = costs[name] - sum((costs[gate] for gate in replaced), Cost(0, 0))
        if _is_gate(name, costs):
            plan = replace(plan, gates=plan.gates | {name})
        else:
            plan = replace(plan, gates=plan.gates - replaced, blocks=plan.blocks | {name})
        rungs.append(Rung(plan, so_far + added))
    if offload:
        rungs.append(replace(rungs[-1], plan=replace(rungs[-1].plan, offload=True)))
    return rungs


def _in_order(costs: dict[str, Cost]) -> list[str]:
    """The gates and blocks that free anything, best worth first; of a block, beyond its gates."""
    alone = {
        name: cost - sum((costs[gate] for gate in _within(name, costs)), Cost(0, 0))
        for name, cost in costs.items()
    }
    worthy = [name for name, cost in alone.items() if cost.freed > 0]
    return sorted(worthy, key=lambda name: -alone[name].worth)


def _within(name: str, costs: dict[str, Cost]) -> frozenset[str]:
    """The gates of a block; none of a gate."""
    return frozenset(it for it in costs if it.startswith(f"{name}."))


def _is_gate(name: str, costs: dict[str, Cost]) -> bool:
    return any(name.startswith(f"{block}.") for block in costs)


def _first_fitting(freed: list[int], peak: Callable[[int], int], room: int) -> int:
    """The first of the rungs that fits, the last if none does. Each peak takes a second, so few
    are asked for: between two known ones, it falls about as bytes are freed.
    """
    low, high = 0, len(freed) - 1
    over, under = peak(low) - room, peak(high) - room
    while high - low > 1 and under <= 0:
        share = over / (over - under)
        wanted = freed[low] + share * (freed[high] - freed[low])
        middle = min(max(bisect_left(freed, wanted), low + 1), high - 1)
        found = peak(middle) - room
        if found > 0:
            low, over = middle, found
        else:
            high, under = middle, found
    return high
