"""PATH and PATH@STEP."""

import pytest

from hybridlm.errors import UserError
from hybridlm.storage.address import split_step


def test_a_step_follows_the_last_at_sign(tmp_path):
    assert split_step("runs/mine@200") == ("runs/mine", 200)
    assert split_step("s3://bucket/run@200") == ("s3://bucket/run", 200)
    (tmp_path / "run@200").mkdir()
    assert split_step(tmp_path / "run@200") == (str(tmp_path / "run@200"), None)
    assert split_step(f"{tmp_path}/run@200@3") == (f"{tmp_path}/run@200", 3)


@pytest.mark.parametrize("text", ["runs/mine", "runs/mine@", "runs/mine@last", "@", "a@b/c"])
def test_what_is_no_step_is_part_of_the_path(text):
    assert split_step(text) == (text, None)


@pytest.mark.parametrize("step", ["", "last", "-2", "4.0"])
def test_what_stands_after_a_folder_is_a_step(step, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=f"after '@' stands the step .*, or leave out '@{step}'"):
        split_step(f"{tmp_path}/run@{step}")
