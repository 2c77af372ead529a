"""Train a hypernetwork for a Stable Diffusion model.

    accelerate launch train_hypernetwork.py --config demo
    accelerate launch train_hypernetwork.py --help

`train` is the whole story; what it calls is made by the `build_` functions of `hn.build`.
"""

import errno
import sys
import traceback

from hn import cli

# First of all, so that --help and mistakes do not wait for torch.
CONFIG = cli.parse_or_exit() if __name__ == "__main__" else None
cli.quiet_libraries()
if CONFIG is not None:
    cli.spare_imports(CONFIG)

import torch
from accelerate import Accelerator

from hn import build, launch, rng
from hn.build import summary
from hn.build.observers import Observers
from hn.config import Config
from hn.data.cache.contexts import Contexts
from hn.errors import BUG, INTERRUPTED, DistributedError, StorageError, UserError
from hn.hub.publisher import Publisher
from hn.limits.processes import parse_duration
from hn.training import optimizers
from hn.training.keeping.saving import Checkpoints
from hn.training.state import TrainingState
from hn.training.telling.reporter import Reporter
from hn.training.telling.status import Status, resume_command
from hn.training.watching.peers import is_broken
from hn.training.watching.signals import Stop
from hn.training.watching.watch import Watch

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)  # what a full one says


def train(
    config: Config, accelerator: Accelerator, status: Status, stop: Stop, watch: Watch
) -> bool:
    """Train to the end of the schedule; False means a signal came, and everything is saved."""
    ready = build.build_ready(config, accelerator, status)
    if config.output.dry_run:
        accelerator.print(build.plan_in_words(config, accelerator, ready))
        return True
    base = build.build_base_model(config, accelerator)
    objective = build.build_objective(config, accelerator, base)
    hypernetwork = build.build_hypernetwork(config, base, ready.start)
    cache = build.build_cache(config)
    contexts = Contexts(base, cache.store)
    painter = build.build_painter(config, base, contexts)
    held_out = build.build_held_out(config, accelerator, ready.datasets, base, contexts, cache)
    batches = build.build_batches(config, accelerator, ready.datasets, base, contexts, cache)

    rates, publisher = ready.rates, ready.publisher
    plain = build.build_denoiser(config, base, hypernetwork, ready.plan, status)
    optimizer = build.build_optimizer(config, accelerator, hypernetwork, ready.start, rates.rate(0))
    denoiser, optimizer, gradients = build.prepare(config, accelerator, plain, optimizer)
    state = build.build_state(config, accelerator, hypernetwork, optimizer, batches, status)
    guard = build.build_guard(
        config, accelerator, hypernetwork, gradients, ready.clip_bounds, batches, rates.end
    )
    reporter = build.build_reporter(
        config, accelerator, status.folder, state, batches, guard, rates.end, status.found
    )
    observers = build.build_observers(
        config, accelerator, base, plain, painter, held_out, status.folder, reporter, status.found
    )
    checkpoints = build.build_checkpoints(config, accelerator, status.folder, guard)
    recovery = build.build_recovery(config, accelerator, guard, checkpoints, reporter, state)

    watch.begin(base.unet)
    hypernetwork.train()
    while state.step < rates.end and not observers.settled(state) and not stop.requested():
        rate = optimizers.set_rate(optimizer, rates.rate(state.step) * recovery.rate_factor(state))
        for batch in batches.at(state.step):
            with accelerator.accumulate(denoiser):
                problem = objective.draw(batch.latents, batch.step, batch.slots, batch.loss_weights)
                rng.seed_layers(config.training.seed, batch.step, batch.slots[0])
                prediction, residual = denoiser(problem.noisy, problem.timesteps, batch.condition)
                loss = objective.loss(prediction, problem, residual)
                accelerator.backward(loss)
                guard.note(loss, batch)
                reporter.add(loss)
                observers.residuals.add(problem.noisy, problem.timesteps, batch.condition)
        norm = guard.clip(state.step)
        taken = guard.takes(state)  # else loss or gradient is not finite, somewhere
        if taken:
            optimizer.step()
            guard.check(optimizer.step_was_skipped, state)
        optimizers.forget_gradients(optimizer)
        state.advance(taken=taken and not optimizer.step_was_skipped)
        if recovery(state):
            continue
        reporter(state, rate, norm if taken else None)
        observers(state)
        checkpoints(state)
        publisher(state)

    return finish(state, rates.end, stop, observers, checkpoints, reporter, publisher, status)


def finish(
    state: TrainingState,
    last_step: int,
    stop: Stop,
    observers: Observers,
    checkpoints: Checkpoints,
    reporter: Reporter,
    publisher: Publisher,
    status: Status,
) -> bool:
    """Measure, save and publish what there is; whether training has come to its end."""
    finished = observers.conclude(state, last_step)
    checkpoints.save(state)
    if not stop.in_a_hurry():
        observers.finish(state)
    reporter.close()
    checkpoints.publish(state, status.folder, finished=finished)
    publisher.close(stop, finished=finished)
    summary.show(status, observers.heldout)
    return finished


def try_rates(config: Config, accelerator: Accelerator) -> int:
    """Do what `find_learning_rate` says, and say what was found."""
    folder = launch.run_folder(config)
    try:
        config = launch.resolve(config, accelerator, folder)
        print(build.find_learning_rate(config, accelerator, folder))
    except KeyboardInterrupt:
        print("interrupted; what was encoded is kept")
        return INTERRUPTED
    print(f"curve          {folder / 'learning_rate.html'}")
    return 0


def main(config: Config) -> int:
    """Run, and turn every ending into an exit code, a message and `status.json`."""
    try:
        accelerator = launch.build_accelerator(config)
        if config.training.find_learning_rate:
            return try_rates(config, accelerator)
        status = launch.build_run_folder(config, accelerator)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    stop = Stop(accelerator, parse_duration(config.training.max_train_time))
    try:
        status.write("running", 0)
        with Watch(accelerator, status, config.training.process_timeout_s) as watch:
            resolved = launch.resolve(config, accelerator, status.folder)
            finished = train(resolved, accelerator, status, stop, watch)
    except KeyboardInterrupt:  # before the first step; later ones save first
        accelerator.print("interrupted before the first step; what was encoded is kept")
        finished = False
    except Exception as error:
        return report_failure(as_user_error(error), status)
    finally:
        # Not within `train`, whose DDP would then be the last to hold the group of processes: torch
        # takes it down with the interpreter locked, while its threads may wait for that lock.
        accelerator.end_training()
        status.release()
    if finished:
        status.write("done", 0)
    else:
        status.write("interrupted", INTERRUPTED, stop.reason)
        accelerator.print(f"interrupted; go on with: {resume_command(status.folder)}")
    return 0 if finished else INTERRUPTED


def as_user_error(error: Exception) -> Exception:
    """Memory, disk and a lost peer have remedies; what else is not a `UserError` is a bug."""
    if isinstance(error, torch.OutOfMemoryError):
        return StorageError(
            f"the GPU's memory is full ({error}). Lower train_batch_size (and raise "
            "gradient_accumulation_steps), set gradient_checkpointing or memory_budget_gib, or "
            "lower resolution."
        )
    if isinstance(error, OSError) and error.errno in DISK:
        return StorageError(f"{error}. Free some space, or mend the disk; then resume.")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return StorageError(
            f"the memory is full ({error}). Lower train_batch_size (and raise "
            "gradient_accumulation_steps), set gradient_checkpointing or memory_budget_gib, or "
            "lower resolution."
        )
    if is_broken(error):
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
    try:
        status.write("failed", code, str(error))
    except StorageError as full:
        print(f"error: {full}", file=sys.stderr)
    return code


if __name__ == "__main__":
    assert CONFIG is not None
    sys.exit(main(CONFIG))
