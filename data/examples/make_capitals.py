"""Writes capitals.jsonl.gz: words of the bundled corpus, to be said again in capitals.

python data/examples/make_capitals.py
"""

import collections
import gzip
import json
import pathlib
import re

import numpy as np

FOLDER = pathlib.Path(__file__).parent
CORPUS = FOLDER.parent / "corpora" / "state_of_the_union.jsonl.gz"
EXAMPLES = 3000


def lines() -> list[str]:
    """One JSON object a line: two words with " = " as `prompt`, and in capitals as `completion`."""
    found: collections.Counter[str] = collections.Counter()
    with gzip.open(CORPUS, "rb") as file:
        for line in file:
            found.update(re.findall(r"\b[a-z]{4,9}\b", json.loads(line)["text"]))
    words = sorted(word for word, count in found.items() if count >= 50)
    rng = np.random.default_rng(0)
    pairs: dict[str, None] = {}  # each pair once, in the order drawn
    while len(pairs) < EXAMPLES:
        pairs[" ".join(words[i] for i in rng.integers(0, len(words), 2))] = None
    return [json.dumps({"prompt": f"{said} = ", "completion": said.upper()}) for said in pairs]


if __name__ == "__main__":
    data = "".join(f"{line}\n" for line in lines()).encode()
    (FOLDER / "capitals.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
