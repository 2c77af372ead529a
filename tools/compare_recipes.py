r"""Train recipes on the embedded demo, over several seeds, and print what came of each as a table.

    python tools/compare_recipes.py style a1111-classic --seeds 0 1 2 --lora style \
        --rate_factor 10 -- --max_train_steps 300

Every row is a real training; held-out gain and drift are measured alike for all of them. What
follows -- goes to every training. The demo's model is ten times narrower than Stable Diffusion, and
Adam's best rate falls with the width (arXiv 2203.03466): --rate_factor 10 makes up for that.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from hn import cli
from hn.errors import INTERRUPTED, UserError

SCRIPT = Path(__file__).parent.parent / "train_hypernetwork.py"


def main() -> int:
    """Read the flags, compare, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    add = parser.add_argument
    add("recipes", nargs="+", help="names of recipes, or TOML files")
    add("-o", "--output", type=Path, help="also write the table to this file")
    add("--seeds", type=int, nargs="+", default=[0], help="a training of each recipe for each (0)")
    add("--pictures", type=int, default=80, choices=range(1, 81), metavar="N", help="of 80 (80)")
    add("--rate_factor", type=float, default=1.0, help="multiply every learning rate with it (1)")
    add("--lora", action="store_true", help="also LoRAs of the same size as the first recipe's")
    try:
        compare(parser.parse_args(given[:split]), given[split + 1 :])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was written")
        return INTERRUPTED
    except subprocess.CalledProcessError as error:  # the training itself has said why
        return error.returncode
    return 0


def compare(args: argparse.Namespace, passed: list[str]) -> None:
    """Train and judge all of them. Raises a `UserError` of any kind."""
    cli.quiet_libraries()

    from tqdm import tqdm

    from hn import demo, launch
    from hn.build.compared import Compared, flags_of
    from hn.evaluation import comparison, lora
    from hn.storage import write_bytes

    if args.lora:
        lora.check_installed()
    with tempfile.TemporaryDirectory() as folder:
        pictures = demo.write_pictures(Path(folder) / "pictures", args.pictures)
        results: list[comparison.Result] = []
        for seed, recipe in tqdm([(it, name) for it in args.seeds for name in args.recipes]):
            flags = [*flags_of(recipe, seed, args.rate_factor, pictures), "--output_dir", folder]
            subprocess.run([sys.executable, SCRIPT, *flags, *passed], check=True)  # noqa: S603
            run = Path(folder) / flags[1]
            compared = Compared(recipe, run, *launch.reopen(run))
            results += compared.artifacts()
            if args.lora and recipe == args.recipes[0]:
                results += compared.loras()
    print(text := comparison.table(results))
    if args.output is not None:
        write_bytes(args.output, f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
