"""The trainer with a fault in one of its processes: faulty.py FAULT RANK flags...

hang sleeps, fifo reads what nobody writes, raise raises; all of it where step 3 asks for pictures.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import train_hypernetwork as script
from hn import cli
from hn.data.batches import Batches

FAULT, RANK = sys.argv[1], sys.argv[2]
at = Batches.at


def faulty_at(self, step):
    if step == 3 and os.environ.get("RANK", "0") == RANK:
        print(f"fault: {os.getpid()}", flush=True)
        if FAULT == "raise":
            raise RuntimeError("planted")
        if FAULT == "fifo":
            Path(os.environ["FIFO"]).read_text()
        if FAULT == "hang":
            time.sleep(1000)
    return at(self, step)


Batches.at = faulty_at
sys.exit(script.main(cli.parse(sys.argv[3:])))
