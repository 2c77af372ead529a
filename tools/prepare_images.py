"""Make training pictures of a folder of pictures: the web UI's "Preprocess images" without a UI.

    python tools/prepare_images.py my_photos -o my_pictures --focal_crop --flip

Modes (--split, --focal_crop, --auto_crop, --keep_original_size) add up: each writes pictures of its
own. A picture to which none applies is resized to fill width x height, and cropped at its centre.
OUTPUT gets NUMBER-PART-NAME.png, a .txt if there is a caption, and manifest.json, which says where
every picture was cut, and what was skipped and why. The web UI's deepbooru captions are left out:
no maintained package has that model.

Exit codes: 0 done, 2 settings, 3 some or all sources cannot be used, 4 a model file, 5 disk,
75 interrupted.
"""

import argparse
import sys
from pathlib import Path

from hn import cli
from hn.errors import DataError
from hn.prepare import settings


def main() -> int:
    """Read the flags, prepare, print the account."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, help="folder of pictures, with their captions in .txt files if any")
    add("-o", "--output", type=Path, required=True, help="folder to write, not there yet or empty")
    add("--overwrite", action="store_true", help="replace what this tool wrote there before")
    add("--dry_run", action="store_true", help="say what would be made, and write nothing")
    settings.add_flags(parser)
    args = parser.parse_args()
    return cli.exit_code_of(lambda: prepare(args), "--overwrite begins again")


def prepare(args: argparse.Namespace) -> None:
    """Prepare what the flags say. Raises `DataError` at the end if sources cannot be read."""
    wanted = settings.from_flags(args)
    cli.quiet_libraries()

    from hn.prepare.output import OutputFolder
    from hn.prepare.prepare import Preparer

    output = OutputFolder(args.output, source=args.source, overwrite=args.overwrite)
    account = Preparer(wanted, None if args.dry_run else output).run(args.source)
    for skip in account.skipped:
        print(f"skipped: {skip['reason']}", file=sys.stderr)
    print(f"{account.summary()}; {'nothing written' if args.dry_run else f'in {args.output}'}")
    if account.unreadable:
        raise DataError(
            f"{len(account.unreadable)} of {account.sources} sources cannot be read; mend or "
            "remove those named above"
        )


if __name__ == "__main__":
    sys.exit(main())
