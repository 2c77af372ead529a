"""Recipes compared on the embedded demo, as a program."""

import pytest

from tests.tools.conftest import run_process


@pytest.mark.slow
def test_recipes_become_rows_of_a_table(tmp_path):
    file = tmp_path / "table.md"
    more = ["--max_train_steps", "20", "--validation_steps", "20", "--report_to", "none"]
    recipes = ["style", "a1111-classic", "--lora", "--rate_factor", 10, "--pictures", 8]
    result = run_process("compare_recipes", *recipes, "-o", file, "--", *more)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(file.read_text())
    style, *loras, classic = file.read_text().splitlines()[2:]
    assert style.startswith("| style | 1-2-1 mish, identity |")
    assert [row.split(" rate ")[1][:6] for row in loras] == ["0.0005", "0.001 "]
    assert classic.startswith("| a1111-classic | 1-2-1 linear, Normal |")


def test_what_cannot_be_compared_is_refused_before_training(run):
    refused = run("compare_recipes", "nonsense")
    assert refused.returncode == 2
    assert "config 'nonsense' is neither a TOML file nor a recipe" in refused.stderr
    assert run("compare_recipes", "style", "--pictures", "0").returncode == 2


def test_a_training_that_fails_ends_the_comparison_with_its_code(run):
    """`keep_best` of the recipe goes by what is measured while training."""
    assert run("compare_recipes", "style", "--", "--validation_steps", "0").returncode == 2
