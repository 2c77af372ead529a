r"""Fold linear hypernetworks into a base model: a model for programs that know no hypernetworks.

    python tools/bake.py stable-diffusion-v1-5 my_style.pt -o baked --strengths 0.8
    python tools/bake.py v1-5.safetensors my_style.pt other.pt -o baked.safetensors

BASE is a Stable Diffusion 1, 2 or XL: a diffusers folder or a single .safetensors file. -o is a
folder, or a file that ends with .safetensors. Several are folded in the order given. Folding is
exact for linear hypernetworks, and refused for others. Exit codes: 0 done, 2 settings, 4 base model
or hypernetwork, 5 disk.
"""

import argparse
import sys
from pathlib import Path

from hn import cli
from hn.errors import OptionError


def main() -> int:
    """Read the flags, fold, write, say how exactly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("base", type=Path, help="a diffusers folder, or a single .safetensors file")
    add("hypernetworks", nargs="+", help="files, or repositories of the hub")
    add("-o", "--output", type=Path, required=True, help="a new folder, or a .safetensors file")
    add("--strengths", type=float, nargs="+", help="one for all, or one for each (1)")
    add("--dtype", choices=("fp16", "bf16", "fp32"), help="of what changes; not given: as it is")
    add("--overwrite", action="store_true", help="replace the output file if it is there")
    args = parser.parse_args()
    return cli.exit_code_of(lambda: bake(args))


def bake(args: argparse.Namespace) -> None:
    """Fold and write. Raises `OptionError`, `ModelError` or `StorageError`."""
    if args.output.is_file() and not args.overwrite:
        raise OptionError(f"{args.output} is there already: choose another, or give --overwrite")
    if not args.base.exists():
        raise OptionError(
            f"{args.base} is neither a folder nor a file; fetch a model of the hub first: hf "
            "download OWNER/NAME --local-dir FOLDER"
        )
    cli.quiet_libraries()

    from hn.diffusion.surgery.baking import bake
    from hn.network.contents import DTYPES
    from hn.network.surgery.affine import name_of
    from hn.network.surgery.stacks import read_stack

    stack = read_stack(args.hypernetworks, args.strengths)
    found = bake(args.base, stack, args.output, DTYPES.get(args.dtype))
    print(f"{args.output}: {args.base} with {', '.join(name_of(net) for net, _ in stack)}")
    print(
        f"attention outputs are the same but for {found.algebra:.1e} (relative, in float64); with "
        f"weights rounded as they are stored, but for {found.stored:.1e}"
    )


if __name__ == "__main__":
    sys.exit(main())
