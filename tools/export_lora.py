r"""Hypernetworks as a LoRA, for the many programs that know LoRAs and no hypernetworks.

    python tools/export_lora.py my_style.pt -o my_style_lora.safetensors --rank 16 \
        --base stable-diffusion-v1-5/stable-diffusion-v1-5 --validation_data_dir held_out
    python tools/export_lora.py linear.pt -o linear_lora.safetensors --rank 64 --format diffusers

A linear one is a matrix in every layer, whose largest singular values are kept (--fit matrices).
Of others the nearest matrices are found for what attention reads while prompts are drawn (--fit
contexts), and measured on other prompts. A LoRA has no bias: keys lose nothing by that, values do,
and it is said how much. Exit codes: 0 done, 2 settings, 3 pictures, 4 models, 5 disk.
"""

import argparse
import sys
from pathlib import Path

from hn import cli
from hn.diffusion.surgery import options
from hn.errors import OptionError


def main() -> int:
    """Read the flags, export, say what is lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("hypernetworks", nargs="+", help="files, or repositories of the hub; in order")
    add("-o", "--output", type=Path, required=True, help="a .safetensors")
    add("--rank", type=int, default=16, help="(16)")
    add("--strengths", type=float, nargs="+", help="one for all, or one for each (1)")
    add("--format", choices=("kohya", "diffusers"), default="kohya", help="names inside (kohya)")
    add("--fit", choices=("matrices", "contexts"), help="(matrices for linear ones)")
    add("--overwrite", action="store_true", help="replace the output file if it is there")
    options.add_flags(parser)
    args = parser.parse_args()
    return cli.exit_code_of(lambda: export(args))


def export(args: argparse.Namespace) -> None:
    """Find the LoRA, write it, measure it. Raises a `UserError` of any kind."""
    if args.output.suffix != ".safetensors" or args.rank < 1:
        raise OptionError(f"-o must end with .safetensors, rank be at least 1; found {args.output}")
    if args.output.exists() and not args.overwrite:
        raise OptionError(f"{args.output} is there already: choose another, or give --overwrite")
    chosen = options.options_of(args)
    cli.quiet_libraries()

    from hn.build.substitutes import build_workbench
    from hn.diffusion.surgery import lora, lora_file
    from hn.network.surgery.affine import is_linear
    from hn.network.surgery.regression import Moments
    from hn.network.surgery.stacks import read_stack

    stack = read_stack(args.hypernetworks, args.strengths)
    linear = all(is_linear(net) for net, _ in stack)
    bench = build_workbench(chosen)
    if args.fit == "matrices" or (args.fit is None and linear):
        found = lora.of_matrices(bench.base.unet, stack, args.rank)
    else:
        seen = bench.sitting.probe(stack, Moments)
        found = lora.of_contexts(bench.base.unet, stack, seen.most, seen.others, args.rank)
    lora_file.write(found, args.output, args.format, args.rank, stack, bench.base.unet)
    print(f"{args.output}: rank {args.rank}, names of {args.format}\n{lora_file.as_text(found)}")
    print(bench.judge(stack, lambda: found.added(bench.base.unet)))


if __name__ == "__main__":
    sys.exit(main())
