"""Rows of a model's layers and of their states; files of evaluations that are none."""

import pytest

from hybridlm.analysis import evaluation
from hybridlm.analysis.rows import RECORDS, evaluation_files, evaluation_rows, state_rows
from hybridlm.errors import RunError
from hybridlm.models.accounting import STATE_LENGTHS, layer_table
from hybridlm.models.params import Model
from tests.models import small


def test_states_by_mixer_add_up_to_the_table_of_layers():
    """With the states of feed-forwards: the mixers' alone are less."""
    config = small.model_config(
        "rwkv7 full",
        4,
        mixers={n: small.MIXERS[n] for n in ("rwkv7", "full")},
        mlp=dict(kind="channel_mix", hidden=48),
    )
    table = [row.state_bytes for row in layer_table(Model.of(config), 64)]
    for tokens, *layers in zip(STATE_LENGTHS, *table, strict=True):
        by_mixer = sum(row["bytes"] for row in state_rows(config) if row["tokens"] == tokens)
        mixers_alone = sum(m.state_bytes(config.width, tokens) for _, m in config.layer_mixers())
        assert by_mixer == sum(layers) > mixers_alone


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "[]",
        "null",
        "{}",
        '{"records": 3}',
        '{"records": [3]}',
        '{"records": [{"task": "mqar"}]}',
    ]
    + ['{"arc_easy": {"acc,none": 0.5}}', '{"records": [], "settings": 3}'],
)
def test_a_file_of_evaluations_that_another_program_wrote_is_named(text, tmp_path):
    (tmp_path / RECORDS).write_text(text)
    for read in (evaluation.read, lambda path: evaluation_rows(evaluation_files(path), None)):
        with pytest.raises(RunError, match=f"{RECORDS} is (no result of `hybridlm eval`|damaged)"):
            read(tmp_path)
