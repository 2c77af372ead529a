r"""Try learning rates on a training that is to be: from 1e-6 to 0.1, one for each step.

    python tools/find_learning_rate.py --config mine.toml
    python tools/find_learning_rate.py --config style --train_data_dir my_pictures \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 -o rates.html

All settings of train_hypernetwork.py are understood, and what is encoded is kept for the training.
The loss of some held-out pictures (of training pictures, if there are none) on the same noise is
measured on the way. It says where this falls fastest: begin there, with a schedule that decays. The
curve is OUTPUT, and beside it a .json with its numbers. Nothing else is written, no hypernetwork.
"""

import argparse
import json
import sys
from pathlib import Path

from hn import cli
from hn.config import Config
from hn.errors import INTERRUPTED, OptionError, UserError


def main() -> int:
    """Read the flags, try, say what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, help="the page; learning_rate.html in the run's folder")
    add("--steps", type=int, default=100, help="so many rates (100)")
    args, settings = parser.parse_known_args()
    try:
        if args.steps < 10:
            raise OptionError(f"steps must be at least 10, 100 is usual; found {args.steps}")
        find(cli.parse(settings), args.output, args.steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was encoded is kept")
        return INTERRUPTED
    return 0


def find(config: Config, output: Path | None, steps: int) -> None:
    """Try, write, print. Raises a `UserError` of any kind."""
    cli.quiet_libraries()

    from hn import launch
    from hn.build.trial import build_trial
    from hn.storage import write_bytes

    folder = launch.run_folder(config)
    output = output or folder / "learning_rate.html"
    accelerator = launch.build_accelerator(config)
    trial = build_trial(launch.resolve(config, accelerator, folder), accelerator)
    found = trial.run(steps)
    write_bytes(output, found.page(config.network.name).encode())
    write_bytes(
        output.with_suffix(".json"), (json.dumps(found.as_json(), indent=1) + "\n").encode()
    )
    print(f"{found}\ncurve          {output}")


if __name__ == "__main__":
    sys.exit(main())
