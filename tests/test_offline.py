"""No network unless it is asked for."""

import socket

import pytest

import hn
from tests import runs
from tests.fuzzing import offline


@pytest.mark.usefixtures("fresh_accelerate")
def test_training_from_folders_asks_for_no_network(model, pictures, tmp_path):
    """With previews, the held-out loss, a tracker and checkpoints; and what is written is read."""
    flags = runs.settings(
        model,
        pictures,
        tmp_path,
        max_train_steps=2,
        checkpointing_steps=1,
        report_to="tensorboard",
        validation_data_dir=pictures,
        validation_prompt="a star",
        validation_inference_steps=1,
    )
    with offline():
        assert runs.train_here(flags) == 0
        for name in ("run.pt", "run.safetensors"):
            assert hn.load(tmp_path / "run" / name).provenance.step == 2


def test_the_network_is_really_off():
    with offline(), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
