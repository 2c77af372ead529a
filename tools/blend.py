r"""Several hypernetworks in one file, or a linear one in another structure.

    python tools/blend.py one.pt other.pt -o both.pt --how sum --weights 0.8 0.4
    python tools/blend.py runs/my_style/checkpoints -o my_style-mean.pt
    python tools/blend.py linear.pt -o small.pt --layer_structure "1, 0.25, 1"

average   of the weights; structures must be the same (a folder means all checkpoints in it)
sum       x + w1 m1(x) + w2 m2(x), exactly: hidden layers side by side
sequence  one after the other, at these strengths; exact for linear ones, or different widths

Exit codes: 0 done, 2 settings, 4 a hypernetwork that this cannot be done with, 5 disk.
"""

import argparse
import sys
from pathlib import Path

from hn import cli
from hn.errors import OptionError


def main() -> int:
    """Read the flags, blend, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", help="hypernetworks, runs, or folders of checkpoints")
    add("-o", "--output", type=Path, required=True, help="a .pt or .safetensors")
    add("--how", choices=("average", "sum", "sequence"), default="average", help="(average)")
    add("--weights", type=float, nargs="+", help="one for all, or one for each (1)")
    add("--layer_structure", type=cli.numbers, help='of a linear result, such as "1, 0.5, 1"')
    add("--overwrite", action="store_true", help="replace the output file if it is there")
    args = parser.parse_args()
    return cli.exit_code_of(lambda: blend(args))


def blend(args: argparse.Namespace) -> None:
    """Blend and write. Raises `OptionError`, `ModelError` or `StorageError`."""
    if args.output.exists() and not args.overwrite:
        raise OptionError(f"{args.output} is there already: choose another, or give --overwrite")
    cli.quiet_libraries()

    from hn.evaluation.candidates import artifacts_in
    from hn.network import files, portability
    from hn.network.surgery import blending, resizing
    from hn.network.surgery.stacks import read_stack

    files.check_ending(args.output)
    names = artifacts_in(args.files)
    if len(names) == 1 and args.layer_structure is None:
        raise OptionError(f"{names[0]} alone is no blend: give another, or --layer_structure")
    how = {"average": blending.average, "sum": blending.add, "sequence": blending.compose}
    stack = read_stack(names, args.weights)
    net = how[args.how](stack) if len(stack) > 1 else stack[0][0]
    error = 0.0
    if args.layer_structure is not None:
        net, error = (resized := resizing.resize(net, args.layer_structure)).net, resized.worst
    files.save(net, args.output)
    print(f"{args.output}: {net.provenance.optional_info}")
    if error > 1e-6:
        print(f"narrower than its matrices: relative error up to {error:.2e}")
    print(portability.as_lines(portability.in_words(portability.judge(files.read(args.output)))))


if __name__ == "__main__":
    sys.exit(main())
