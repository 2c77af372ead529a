"""Convert a hypernetwork between .pt (A1111, ComfyUI) and .safetensors, without loss.

    python tools/convert.py my_style.pt -o my_style.safetensors
    python tools/convert.py my_style-500.safetensors -o shared/my_style.pt --share --dtype fp16

Writing mends what hosts disagree on: container, flags, order of tensors, the name inside.
"""

import argparse
import sys
from pathlib import Path

from hn import cli
from hn.errors import OptionError, shown

OTHER = {".pt": ".safetensors", ".safetensors": ".pt"}


def main() -> int:
    """Read, change as asked, write, and say what each host makes of the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("file", type=Path)
    add("-o", "--output", type=Path, help="a .pt or .safetensors; not given: the other kind beside")
    add("--dtype", choices=("fp16", "bf16", "fp32"), help="precision; not given: the file's own")
    add("--share", action="store_true", help="as --fix, and without notes about the training")
    add(
        "--fix",
        action="store_true",
        help="remove dropout and an activation that is never applied: both change no picture,\n"
        "and some hosts compute them otherwise",
    )
    add("--base_file", type=Path, help="the base model's single file, for its hash in the result")
    add("--overwrite", action="store_true", help="replace the output file if it is there")
    args = parser.parse_args()
    return cli.exit_code_of(lambda: convert(args))


def convert(args: argparse.Namespace) -> None:
    """The conversion. Raises `OptionError`, `ModelError` or `StorageError`."""
    output = args.output or args.file.with_suffix(OTHER.get(args.file.suffix, ".pt"))
    if output.exists() and not args.overwrite:
        raise OptionError(f"{output} is there already: choose another -o, or give --overwrite")

    from hn.network import files, portability, sharing
    from hn.network.a1111 import unread
    from hn.network.contents import DTYPES
    from hn.network.sidecar import beside, short_hash

    files.check_ending(output)
    contents = files.read(files.locate(args.file))
    left_out = unread(contents)
    if args.fix or args.share:
        contents = sharing.mended(contents)
    if args.share:
        contents = contents.described(optional_info=None)
    if args.base_file is not None:
        contents = contents.described(
            sd_checkpoint=short_hash(args.base_file), sd_checkpoint_name=args.base_file.stem
        )
    if args.dtype is not None:
        contents = contents.to(DTYPES[args.dtype])
    files.write(contents, output)
    print(f"{args.file} -> {output}")
    if left_out:
        print(f"left out, since no host reads it: {shown(left_out)}")
    if beside(args.file).exists():
        print(f"left alone: {beside(args.file)}, which belongs to {args.file.name} as it was")
    print(portability.as_lines(portability.in_words(portability.judge(files.read(output), output))))


if __name__ == "__main__":
    sys.exit(main())
