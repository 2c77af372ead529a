r"""Turn the settings-*.json that the web UI wrote beside a training into a TOML file of ours.

    python tools/import_settings.py settings-2023-06-01-12-00-00.json -o my_style.toml \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

Then: accelerate launch train_hypernetwork.py --config my_style.toml
"""

import argparse
import sys
from pathlib import Path

from hn import cli
from hn.errors import OptionError


def main() -> int:
    """Read, check, write, and say what is not in that file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("file", type=Path)
    add("-o", "--output", type=Path, required=True, help="the TOML file to write")
    add("--pretrained_model_name_or_path", default="", help="the base model in diffusers' layout")
    add("--overwrite", action="store_true", help="replace the output file if it is there")
    args = parser.parse_args()
    return cli.exit_code_of(lambda: import_settings(args))


def import_settings(args: argparse.Namespace) -> None:
    """Write the TOML file. Raises `OptionError` or `StorageError`."""
    if args.output.exists() and not args.overwrite:
        raise OptionError(f"{args.output} is there already: choose another -o, or give --overwrite")

    from hn import web_ui_settings
    from hn.config import Config
    from hn.errors import printable
    from hn.storage import write_bytes

    imported = web_ui_settings.read(args.file)
    config = imported.config(pretrained_model_name_or_path=args.pretrained_model_name_or_path)
    toml = cli.to_toml(config, without=Config())
    cli.from_toml(toml, args.file)  # values of another kind than ours stop here, by name
    lines = [f"From the web UI's {printable(args.file.name)}.", *imported.notes]
    comments = "".join(f"# {line}\n" for line in lines)
    write_bytes(args.output, f"{comments}\n{toml}".encode())
    print(f"{args.file} -> {args.output}")
    print("\n".join(f"  - {note}" for note in imported.notes))


if __name__ == "__main__":
    sys.exit(main())
