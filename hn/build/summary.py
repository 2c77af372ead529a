"""What a run leaves, said at its end."""

import shlex

from hn.evaluation.heldout import Heldout
from hn.training.keeping.best import LINK as BEST
from hn.training.telling.status import Status


def show(status: Status, heldout: Heldout) -> None:
    """Say where everything lies and what was learnt, on the main process."""
    if not status.main_process:
        return
    folder = status.folder
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.safetensors")]):
        print(f"hypernetwork   {path}")
    for pattern in ("checkpoints/step-*", "previews/*.png"):
        found = sorted(folder.glob(pattern))
        if found:
            print(f"{pattern.split('/')[0]:<14} {found[-1]}  ({len(found)} in all)")
    print(f"numbers        {folder / 'metrics.jsonl'}, {folder / 'hypernetwork_loss.csv'}")
    if (folder / "tensorboard").exists():
        print(f"curves         tensorboard --logdir {shlex.quote(str(folder / 'tensorboard'))}")
    for name, comparison in heldout.last.items():
        print(f"held-out loss  {name + ': ' if name else ''}{comparison}")
    if (folder / "checkpoints" / BEST).is_symlink():
        print(f"best           {(folder / 'checkpoints' / BEST).resolve()}")
    if status.remark:
        print(status.remark)
