"""`hybridlm train`: what its options set in the config."""

import json

import pytest

from tests.train import recurrent


@pytest.mark.parametrize(
    "words, path, step",
    [
        ([], "runs/base", 7),
        (["--init_from", "runs/other"], "runs/other", None),  # not step 7 of another run
        (["--init_from", "runs/other@3"], "runs/other", 3),
        (["--init_from", "runs/other", "--config.init.step=5"], "runs/other", 5),
    ],
)
def test_init_from_sets_the_path_and_the_step_of_a_recipe(words, path, step, command, tmp_path):
    settings = recurrent.settings_of(tmp_path, train=dict(steps=1))
    settings["init"] = dict(path="runs/base", step=7, optimizer=True)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"def get_config():\n    return {settings!r}\n")
    code, said, err = command("train", "--config", recipe, *words, "--dry_run", "--show_config")
    assert code == 0, err
    init = json.JSONDecoder().raw_decode(said)[0]["init"]
    assert (init["path"], init["step"], init["optimizer"]) == (path, step, True)
