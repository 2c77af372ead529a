"""A run and its evaluation as they may be, with everything a report can show."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

from hn.demo.pictures import caption, render, sample_scene
from hn.diffusion.pipeline import grid, save_picture

BASE_LOSS = 1.742
BEST = 300
STEPS = tuple(range(100, 701, 100))
HOSTILE = "<script>alert(1)</script>\"'><img src=https://example.com/x.png>\u202e&amp;"


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def make_run(folder: Path) -> Path:
    """Metrics of 700 steps, the artifacts of the best step, and two grids for the report."""
    rng = Random(0)
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 0.35 + 1.3 * math.exp(-step / 90) + rng.gauss(0, 0.09),
            "learning_rate": 5e-4 * min(1, step / 20) * (1 + math.cos(math.pi * step / 700)) / 2,
        }
        for step in range(1, 701)
    ]
    for step in STEPS:
        ratios = {"24.k": 0.1, "24.v": 0.42, "80.k": 0.2, "80.v": 0.31}
        shares = {f"residual_ratio/{name}": r * step / 700 for name, r in ratios.items()}
        rows.append({"step": step, "heldout_loss": loss_at(step), **shares})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    checkpoint = folder / f"checkpoints/step-{BEST:08d}"
    checkpoint.mkdir(parents=True)
    for ending in (".pt", ".safetensors"):
        (checkpoint / f"neon-{BEST}{ending}").write_bytes(b"weights")
    draw_grids(folder / "evaluation")
    return folder


def draw_grids(folder: Path) -> None:
    rng = Random(3)
    scenes = [sample_scene(rng) for _ in range(4)]
    rows = [[render(one, "plain"), render(one, "neon"), render(one, "neon")] for one in scenes]
    labels = ["strength 0", "strength 0.5", "strength 1"]
    save_picture(grid(rows, [caption(one) for one in scenes], labels), folder / "sweep.png")
    seeds = [[render(sample_scene(rng), "neon") for _ in range(6)]]
    seed_labels = [f"seed {seed}" for seed in range(6)]
    save_picture(grid(seeds, ["a star on blue"], seed_labels), folder / "seeds.png")
    save_picture(render(scenes[0], "neon"), folder / "worst-0.png")


def loss_at(step: int) -> float:
    """Falls until step 300, rises after it."""
    return 4.2 if step == 700 else 0.11 + 0.9 * math.exp(-step / 60) + 0.0004 * max(0, step - BEST)


def make_evaluation() -> dict[str, Any]:
    """Everything, with one checkpoint of each flag."""
    checkpoints = [make_checkpoint(step, "raw") for step in STEPS]
    checkpoints += [make_checkpoint(step, "ema") for step in STEPS[1:]]
    checkpoints.sort(key=lambda one: (one["step"], one["kind"]))
    order = sorted(checkpoints, key=lambda one: (bool(one["flags"]), one["loss"]))
    for rank, one in enumerate(order, 1):
        one["rank"] = rank
    return {
        "format": 1,
        "name": "neon",
        "base_model": "stable-diffusion-v1-5",
        "versions": {"hn": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
        "settings": {
            "network": {"name": "neon", "layer_structure": [1, 2, 1], "activation_func": "mish"},
            "optimizer": {
                "learning_rate": "5e-4",
                "lr_scheduler": "cosine",
                "use_8bit_adam": False,
            },
            "training": {"max_train_steps": 700, "train_batch_size": 4, "seed": 0},
        },
        "heldout": {
            "pictures": 20,
            "draws": 8,
            "bands": [[0, 250], [250, 500], [500, 750], [750, 1000]],
            "source": "validation_data_dir",
        },
        "checkpoints": checkpoints,
        "pictures": make_pictures(),
        "sweep": {"step": BEST, "kind": "raw", "points": [make_point(s / 4) for s in range(6)]},
        "recommendation": {
            "step": BEST,
            "kind": "raw",
            "strength": 1.0,
            "artifact": f"neon-{BEST}.safetensors",
            "reason": "Its held-out loss is the lowest of all checkpoints, 93 % below the base "
            "model's, and strength 1 has the whole style while prompts are still followed.",
        },
        "grids": [
            {
                "title": "Prompts at strengths",
                "file": "sweep.png",
                "alt": "Four prompts in rows; strength 0, 0.5 and 1 in columns. From 0.5 on, plain "
                "shapes become neon signs.",
            },
            {
                "title": "Seeds of one prompt",
                "file": "seeds.png",
                "alt": "Six seeds, all different.",
            },
        ],
    }


def make_checkpoint(step: int, kind: str) -> dict[str, Any]:
    loss = loss_at(step) * (1 if kind == "raw" else 1.06)
    flags = {500: ["overfitting"], 600: ["overfitting", "memorising"], 700: ["diverged"]}
    return {
        "step": step,
        "kind": kind,
        "artifact": f"neon-{step}{'-ema' * (kind == 'ema')}.safetensors",
        "base_loss": BASE_LOSS,
        "loss": loss,
        "gain": 1 - loss / BASE_LOSS,
        "difference": interval(loss - BASE_LOSS, 0.06),
        "bands": [
            {
                "from": start,
                "to": start + 250,
                "base_loss": base,
                "loss": base * share,
                "difference": interval(base * (share - 1), 0.05 * base),
            }
            for start, base, share in zip(
                (0, 250, 500, 750), (0.7, 1.4, 2.1, 2.7), (0.42, 0.2, 0.09, 0.05), strict=True
            )
        ],
        "train": {"base_loss": 1.7, "loss": loss * 0.9, "gain": 1 - loss * 0.9 / 1.7},
        "drift": 0.05 + step / 4000,
        "residual_ratio": {"24.k": 0.1, "24.v": 0.42, "80.k": 0.2, "80.v": 0.31, "160.v": 0.12},
        "memorisation": {
            "nearest": 0.8 - step / 1500,
            "baseline": 0.71,
            "closer": step / 900,
            "flag": "memorising" in flags.get(step, []),
        },
        "flags": flags.get(step, []),
    }


def make_pictures() -> list[dict[str, Any]]:
    """Least gain first; the first has a caption that tries to be markup."""
    rng = Random(5)
    pictures: list[dict[str, Any]] = []
    for number in range(26):
        gain = -0.2 + number / 24
        by_step = {
            str(step): {"loss": 1.8 * (1 - gain), "gain": gain * min(1, step / BEST)}
            for step in STEPS
        }
        pictures.append(
            {
                "name": f"{number:03}.png",
                "caption": HOSTILE if number == 0 else caption(sample_scene(rng)),
                "split": "heldout" if number % 3 else "train",
                "base_loss": 1.8,
                "by_step": by_step,
            }
        )
    pictures[0]["file"] = "worst-0.png"
    return pictures


def make_point(strength: float) -> dict[str, Any]:
    loss = BASE_LOSS * (1 - strength) ** 2 + 0.12
    return {
        "strength": strength,
        "heldout": {"loss": loss, "difference": interval(loss - BASE_LOSS - 0.12, 0.08)},
        "style": 1 / (1 + math.exp(6 * (0.5 - strength))),
        "agreement": 0.96 - 0.2 * strength**3,
        "diversity": 1 - 0.15 * strength,
        "drift": 0.14 * strength,
    }
