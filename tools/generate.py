r"""Draw prompts with hypernetworks: a picture for each seed and strength, and a grid of all.

    python tools/generate.py "a star" "a heart" -o drawn \
        --hypernetwork runs/demo/demo.safetensors --strengths 0 0.5 1
    python tools/generate.py "a castle <hypernet:my_style:0.8>" -o drawn \
        --hypernetwork_dir models/hypernetworks --base stable-diffusion-v1-5/stable-diffusion-v1-5

Each PNG holds what it was made of, as the web UI writes and reads it ("PNG Info"); --like draws
what such a picture says once more. The same settings give the same bytes on the same machine.

Exit codes: 0 done, 2 settings, 4 base model or hypernetwork, 5 disk.
"""

import argparse
import sys

from hn import cli
from hn.diffusion.generation import settings
from hn.errors import UserError


def main() -> int:
    """Read the flags, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    try:
        wanted = settings.read_flags(parser)
        cli.quiet_libraries()

        from hn.diffusion.generation.generator import Generator

        picture = Generator(wanted).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{wanted.pictures} pictures; all are on {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
