"""Train a hypernetwork for a Stable Diffusion model.

    accelerate launch train_hypernetwork.py --config demo
    accelerate launch train_hypernetwork.py --help

`train` is the whole story; what it calls is made by the `build_` functions of `hn.build`.
"""

import shlex
import sys
import traceback

from hn import cli

# First of all, so that --help and mistakes do not wait for torch.
CONFIG = cli.parse_or_exit() if __name__ == "__main__" else None
cli.quiet_libraries()

import torch
from accelerate import Accelerator

from hn import build, launch, rng
from hn.config import Config
from hn.data.cache.contexts import Contexts
from hn.diffusion.denoiser import Condition
from hn.errors import BUG, INTERRUPTED, DistributedError, StorageError, UserError
from hn.evaluation.heldout import Heldout
from hn.training import optimizers
from hn.training.best import LINK as BEST
from hn.training.signals import Stop
from hn.training.status import Status, resume_command


def train(config: Config, accelerator: Accelerator, status: Status) -> bool:
    """Train to the end of the schedule; False means a signal came, and everything is saved."""
    stop = Stop(accelerator)
    publisher = build.build_publisher(config, accelerator, status)
    rates, clip_bounds = build.build_schedules(config)
    start = build.build_start(config, accelerator)
    datasets = build.build_datasets(config, accelerator)
    base = build.build_base_model(config, accelerator)
    objective = build.build_objective(config, accelerator, base)
    hypernetwork = build.build_hypernetwork(config, base, start)
    cache = build.build_cache(config)
    contexts = Contexts(base, cache.store)
    painter = build.build_painter(config, base, contexts)
    held_out = build.build_held_out(config, accelerator, datasets, base, contexts, cache)
    batches = build.build_batches(config, accelerator, datasets, base, contexts, cache)

    plain = build.build_denoiser(config, base, hypernetwork, status)
    optimizer = build.build_optimizer(config, accelerator, hypernetwork, start, rates.rate(0))
    denoiser, optimizer = accelerator.prepare(plain, optimizer)
    state = build.build_state(config, accelerator, hypernetwork, optimizer, batches, status)
    guard = build.build_guard(config, accelerator, hypernetwork, clip_bounds)
    reporter = build.build_reporter(
        config, accelerator, status.folder, state, batches, guard, rates.end
    )
    observers = build.build_observers(
        config, accelerator, base, plain, painter, held_out, status.folder, reporter
    )
    checkpoints = build.build_checkpoints(config, accelerator, status.folder, guard)

    hypernetwork.train()
    while state.step < rates.end and not observers.settled(state) and not stop.requested():
        rate = optimizers.set_rate(optimizer, rates.rate(state.step))
        for batch in batches.at(state.step):
            with accelerator.accumulate(denoiser):
                problem = objective.draw(batch.latents, batch.step, batch.slots, batch.loss_weights)
                rng.seed_layers(config.training.seed, batch.step, batch.slots[0])
                prediction, residual = denoiser(
                    problem.noisy, problem.timesteps, Condition(batch.context)
                )
                loss = objective.loss(prediction, problem, residual)
                accelerator.backward(loss)
                reporter.add(loss)
                observers.residuals.add(problem.noisy, problem.timesteps, batch.context)
        norm = guard.clip(state.step)
        optimizer.step()
        guard.check(optimizer.step_was_skipped, state.step)
        optimizer.zero_grad()
        state.advance()
        reporter(state, rate, norm)
        observers(state)
        checkpoints(state)
        publisher(state)

    finished = observers.conclude(state, rates.end)
    checkpoints.save(state)
    if not stop.in_a_hurry:
        observers.finish(state)
    reporter.close()
    checkpoints.publish(state, status.folder, finished=finished)
    publisher.close(stop, finished=finished)
    print_summary(status, observers.heldout)
    return finished


def print_summary(status: Status, heldout: Heldout) -> None:
    """Say where everything lies and what was learnt, on the main process."""
    if not status.main_process:
        return
    folder = status.folder
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.safetensors")]):
        print(f"hypernetwork   {path}")
    for pattern in ("checkpoints/step-*", "previews/*.png"):
        found = sorted(folder.glob(pattern))
        if found:
            print(f"{pattern.split('/')[0]:<14} {found[-1]}  ({len(found)} in all)")
    print(f"numbers        {folder / 'metrics.jsonl'}, {folder / 'hypernetwork_loss.csv'}")
    if (folder / "tensorboard").exists():
        print(f"curves         tensorboard --logdir {shlex.quote(str(folder / 'tensorboard'))}")
    for name, comparison in heldout.last.items():
        print(f"held-out loss  {name + ': ' if name else ''}{comparison}")
    if (folder / "checkpoints" / BEST).is_symlink():
        print(f"best           {(folder / 'checkpoints' / BEST).resolve()}")
    if status.remark:
        print(status.remark)


def main(config: Config) -> int:
    """Run, and turn every ending into an exit code, a message and `status.json`."""
    try:
        accelerator = launch.build_accelerator(config)
        status = launch.build_run_folder(config, accelerator)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    try:
        status.write("running", 0)
        finished = train(launch.resolve(config, accelerator, status.folder), accelerator, status)
    except KeyboardInterrupt:  # before the first step; later ones save first
        accelerator.print("interrupted before the first step; what was encoded is kept")
        finished = False
    except Exception as error:
        return report_failure(as_user_error(error), status)
    finally:
        # Not within `train`, whose DDP would then be the last to hold the group of processes: torch
        # takes it down with the interpreter locked, while its threads may wait for that lock.
        accelerator.end_training()
    status.write("done" if finished else "interrupted", 0 if finished else INTERRUPTED)
    if not finished:
        accelerator.print(f"interrupted; go on with: {resume_command(status.folder)}")
    return 0 if finished else INTERRUPTED


def as_user_error(error: Exception) -> Exception:
    """Out of memory and a lost peer have remedies; what else is not a `UserError` is a bug."""
    if isinstance(error, torch.OutOfMemoryError):
        return StorageError(
            f"the GPU's memory is full ({error}). Lower train_batch_size (and raise "
            "gradient_accumulation_steps), set gradient_checkpointing, or lower resolution."
        )
    if isinstance(error, torch.distributed.DistError):
        return DistributedError(
            f"another process ended or does not answer ({error}). Its own message says why; resume "
            "from the last checkpoint."
        )
    return error


def report_failure(error: Exception, status: Status) -> int:
    """Print the message (of a bug, the traceback), write `status.json`, return the exit code."""
    code = error.exit_code if isinstance(error, UserError) else BUG
    if code == BUG:
        traceback.print_exception(error)
        print("this is a bug in hn; please report it with the lines above", file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
    status.write("failed", code, str(error))
    return code


if __name__ == "__main__":
    assert CONFIG is not None
    sys.exit(main(CONFIG))
