"""Cells of the feature matrix, each trained to its end and stopped and resumed: matrix.py JOBS.

JOBS is a JSON file with a list of [math, port, flags]. All of them run in these processes one after
the other, since starting takes longest.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from torch.nn.attention import SDPBackend, sdpa_kernel

import train_hypernetwork as script
from hn import cli
from tests import runs

VARIABLES = ("TORCHELASTIC_USE_AGENT_STORE", "MASTER_PORT")


def main(jobs):
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # it remembers the last group
    for math, port, flags in jobs:
        os.environ["MASTER_PORT"] = str(port)
        runs.forget_accelerate()
        with sdpa_kernel(SDPBackend.MATH) if math else nullcontext():
            assert script.main(cli.parse(flags)) == 0, flags


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
