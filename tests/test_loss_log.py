"""A hundred steps on the embedded demo give the losses that they gave before, to the bit.

python -m tests.test_loss_log  # writes those of this platform, where a change of them is meant
"""

import json
import platform
import tempfile
from pathlib import Path

import pytest
import torch

from hn import demo
from tests import golden, runs

LOG = golden.FOLDER / "losses.json"
PICTURES = 12


def platform_name() -> str:
    """What the last bit of a sum depends on."""
    models = [line for line in _cpu_lines() if line.startswith("model name")]
    model = models[0].partition(": ")[2] if models else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {model}, {capability}, {torch.get_num_threads()} thread"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def train(folder: Path) -> list[float]:
    """Losses of a hundred steps, with everything random that there is."""
    pictures, _ = demo.write_pictures(folder / "pictures", PICTURES)
    changes = {"max_train_steps": 100, "resolution": 64, "random_flip": True, "validation_steps": 0}
    changes |= {"train_batch_size": 1}
    changes |= {"learning_rate": "5e-4", "caption_dropout": 0.1, "latent_sampling": "random"}
    assert runs.train_here(runs.settings(Path(demo.NAME), pictures, folder, **changes)) == 0
    return runs.losses(folder / "run")


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_hundred_losses_are_what_they_were(tmp_path):
    logs = json.loads(LOG.read_text())
    name = platform_name()
    if name not in logs:
        pytest.skip(f"losses are stored for {', '.join(logs)}; this is {name}")
    found = train(tmp_path)
    assert len(found) == 100
    assert found == logs[name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        stored = json.loads(LOG.read_text()) if LOG.exists() else {}
        LOG.write_text(
            json.dumps({**stored, platform_name(): train(Path(scratch))}, indent=1) + "\n"
        )
