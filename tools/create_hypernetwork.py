r"""Create a hypernetwork file, as the web UI's Create tab does.

    python tools/create_hypernetwork.py my_style --sizes 768 320 640 1280 \
        --layer_structure "1, 2, 1" --activation_func mish

Training goes on from it: train_hypernetwork.py --hypernetwork_path my_style.pt
"""

import argparse
import sys
from pathlib import Path

from hn import cli
from hn.errors import OptionError, shown
from hn.limits import MAX_NAME


def main() -> int:
    """Create and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("name", help="letters, digits, blanks and ._- ; others are dropped, as in the web UI")
    add("-o", "--output", type=Path, default=Path(), help="folder for NAME.pt")
    add("--sizes", type=int, nargs="+", default=[768, 320, 640, 1280], help="context widths")
    add("--layer_structure", type=cli.numbers, default=(1, 2, 1), help='such as "1, 2, 1"')
    add("--activation_func", default="linear", help="by its web UI name")
    add("--weight_initialization", default="identity", help="identity, Normal, KaimingNormal, ...")
    add("--is_layer_norm", action="store_true", help="LayerNorm after every layer")
    add("--activate_output", action="store_true", help="activation also after the last layer")
    add("--dropout_structure", type=cli.numbers, default=(), help='such as "0, 0.3, 0"; none: off')
    add("--seed", type=int, help="the same seed gives the same weights, also in the web UI")
    add("--overwrite", action="store_true", help="replace the file if it is there")
    args = parser.parse_args()
    return cli.exit_code_of(lambda: create(args))


def create(args: argparse.Namespace) -> None:
    """Write the new file and say which hosts run it. Raises `OptionError` or `ModelError`."""
    name = "".join(c for c in args.name if c.isalnum() or c in "._- ").strip()
    if not any(map(str.isalnum, name)) or len(name.encode()) > MAX_NAME:
        raise OptionError(
            f"name {shown(args.name)} must have a letter or digit, and at most {MAX_NAME} bytes"
        )
    path = args.output / f"{name}.pt"
    if path.exists() and not args.overwrite:
        raise OptionError(f"{path} is there already: choose another name, or give --overwrite")

    import hn
    from hn.network import files, portability

    net = hn.Hypernetwork.create(
        args.sizes,
        layer_structure=args.layer_structure,
        activation_func=args.activation_func,
        weight_initialization=args.weight_initialization,
        is_layer_norm=args.is_layer_norm,
        activate_output=args.activate_output,
        dropout_structure=args.dropout_structure,
        seed=args.seed,
        name=name,
    )
    hn.save(net, path)
    print(f"created {path}")
    print(portability.as_lines(portability.in_words(portability.judge(files.read(path), path))))


if __name__ == "__main__":
    sys.exit(main())
