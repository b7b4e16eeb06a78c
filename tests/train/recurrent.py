"""Runs of seconds: a recurrent model of one layer on a file of text, for tests of whole runs."""

import json


def settings_of(folder, *, data=None, optimizer=None, train=None):
    """Its config as plain data; the text is `a.jsonl` in the folder. Arguments add to its sections."""
    steps = dict(log_every=1, eval_sequences=4, tensorboard=False)
    return dict(
        model=dict(
            width=16,
            depth=1,
            pattern="rec",
            mixers=dict(rec=dict(kind="rglru", heads=2)),
            mlp=dict(hidden=16),
        ),
        data=dict(
            sources=dict(a=dict(kind="jsonl", path=str(folder / "a.jsonl"))),
            seq_len=32,
            batch_size=4,
        )
        | (data or {}),
        optimizer=optimizer or dict(lr=0.01),
        train=steps | (train or {}),
    )


def write_text(folder, texts=None):
    """The texts, 25 by default, as `a.jsonl`."""
    texts = texts or [f"Of the year {1790 + i} and of what came then." * 2 for i in range(25)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
