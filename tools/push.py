"""Publish a run on the Hugging Face Hub, or what an upload left undone.

    python tools/push.py runs/my_style
    python tools/push.py runs/my_style -o me/my_style --hub_strategy all --hub_license mit

What is not given is as the run's own settings say. What is there already is not uploaded again.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from hn.config import HubConfig
from hn.errors import INTERRUPTED, UserError


def main() -> int:
    """Read the flags, push."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="folder of the run")
    add("-o", "--hub_model_id", metavar="ID", help="the repository, owner/name")
    add("--hub_strategy", choices=("end", "every_save", "all"), help="what of the checkpoints goes")
    add("--hub_license", metavar="ID", help="licence in the card, such as mit")
    add("--hub_public", action="store_true", default=None, help="for everyone; else only for you")
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    try:
        print(push(given.pop("run"), given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was uploaded is kept")
        return INTERRUPTED
    return 0


def push(run: Path, given: dict[str, str | bool]) -> str:
    """The repository's address. Raises a `UserError` of any kind."""
    from hn import cli
    from hn.limits.hub import hub_faults

    cli.quiet_libraries()

    from hn.errors import OptionError
    from hn.hub.runs import push_run, read_settings

    hub: HubConfig = replace(read_settings(run).hub, push_to_hub=True, **given)
    faults = hub_faults(hub)
    if faults:
        raise OptionError("\n".join(faults))
    return push_run(run, hub)


if __name__ == "__main__":
    sys.exit(main())
