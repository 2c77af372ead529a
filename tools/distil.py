"""Hypernetworks as one of another structure, smaller or known to more programs.

    python tools/distil.py gelu_style.pt -o mish_style.pt --activation_func mish --base me/model
    python tools/distil.py one.pt other.pt -o both.pt --layer_structure "1, 1, 1"

It learns to give what they give one after the other, on what attention reads while prompts are
drawn; the error is measured on other prompts, before and after. A linear structure is found at
once. Exit codes: 0 done, 2 settings, 3 pictures, 4 models, 5 disk.
"""

import argparse
import sys
from pathlib import Path

from hn import cli
from hn.diffusion.surgery import options
from hn.errors import OptionError


def main() -> int:
    """Read the flags, distil, write, say how far off it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("hypernetworks", nargs="+", help="files, or repositories of the hub; in order")
    add("-o", "--output", type=Path, required=True, help="a .pt or .safetensors")
    add("--strengths", type=float, nargs="+", help="one for all, or one for each (1)")
    add("--layer_structure", type=cli.numbers, help='such as "1, 1, 1" (that of the first file)')
    add("--activation_func", default="mish", help="by its web UI name (mish)")
    add("--fit_steps", type=int, default=2000, help="of training each module (2000)")
    add("--overwrite", action="store_true", help="replace the output file if it is there")
    options.add_flags(parser)
    args = parser.parse_args()
    return cli.exit_code_of(lambda: distil(args))


def distil(args: argparse.Namespace) -> None:
    """Distil and write. Raises a `UserError` of any kind."""
    if args.output.exists() and not args.overwrite:
        raise OptionError(f"{args.output} is there already: choose another, or give --overwrite")
    if args.fit_steps < 1:
        raise OptionError(f"fit_steps must be at least 1, 2000 is usual; found {args.fit_steps}")
    chosen = options.options_of(args)
    cli.quiet_libraries()

    import hn
    from hn.build.substitutes import build_workbench
    from hn.network import files, portability
    from hn.network.surgery import distilling
    from hn.network.surgery.distilling import Lessons
    from hn.network.surgery.stacks import read_stack

    files.check_ending(args.output)
    stack = read_stack(args.hypernetworks, args.strengths)
    config = distilling.structure_for(stack, args.layer_structure, args.activation_func)
    student = distilling.start(stack, config)
    bench = build_workbench(chosen)
    seen = bench.sitting.probe(stack, distilling.Rows)
    most, others = Lessons.of(seen.most), Lessons.of(seen.others)
    before = distilling.errors_of(student, others)
    student = distilling.teach(student, most, args.fit_steps)
    files.save(student, args.output)
    print(f"{args.output}: {student.provenance.optional_info}")
    print(distilling.as_text(before, distilling.errors_of(student, others)))
    student, unet = student.to(bench.base.device), bench.base.unet
    print(bench.judge(stack, lambda: hn.attach(unet, [(student, 1.0)])))
    print(portability.as_lines(portability.in_words(portability.judge(files.read(args.output)))))


if __name__ == "__main__":
    sys.exit(main())
