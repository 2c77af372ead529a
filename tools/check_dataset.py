"""What is wrong or odd with a folder of training pictures, and what the model will see of it.

    python tools/check_dataset.py my_pictures --resolution 512 -o sheet.png

Finds pictures that are there twice, small, blurred, of one colour, transparent or far too long,
and captions that are missing, empty, repeated or too long. The sheet shows every picture with its
crop. The settings of the pictures mean what they mean in train_hypernetwork.py.

Exit codes: 0 training would take the folder, 2 settings, 3 training would refuse it, 4 the
tokenizer cannot be loaded, 5 disk.
"""

import argparse
import json
import sys

from hn import cli
from hn.checkup import settings
from hn.errors import DataError


def main() -> int:
    """Read the flags, check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    settings.add_flags(parser)
    args = parser.parse_args()
    return cli.exit_code_of(lambda: check(args))


def check(args: argparse.Namespace) -> None:
    """Report, draw the sheet. Raises `DataError` at the end if training would refuse the folder."""
    data = settings.data_of(args)
    cli.quiet_libraries()

    from hn.checkup import checkup, sheet, wording
    from hn.checkup.captions import Ruler
    from hn.data.pictures.buckets import USUAL_STEP, step_of

    shown = args.max_pictures if args.output else 0
    report, thumbnails = checkup.check_up(
        data,
        Ruler(args.tokenizer),
        top=args.top,
        shown=shown,
        step=step_of(str(args.tokenizer)) if args.tokenizer else USUAL_STEP,
        batch_size=args.train_batch_size,
    )
    print(json.dumps(report.as_dict(), indent=1) if args.json else wording.as_text(report))
    if args.output and thumbnails:
        sheet.write(args.output, report, thumbnails)
        count = f"{len(thumbnails)} of {len(report.pictures)}"
        print(f"{count} pictures are on {args.output}", file=sys.stderr)
    if not report.usable:
        reasons = "the reason is" if len(report.faults) == 1 else "the reasons are"
        raise DataError(f"training would refuse '{args.folder}'; {reasons} in the report")


if __name__ == "__main__":
    sys.exit(main())
