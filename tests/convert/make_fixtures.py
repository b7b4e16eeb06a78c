"""Writes tiny random models of transformers and their logits, for the tests of this folder.

The models are made in a Python 3.11 environment of their own, as in tests/oracles, whose environment
is used. Sizes and options are drawn from the seed. A fixture is a folder: config.json,
model.safetensors as `save_pretrained` writes them, expected.npz (tokens of two documents, and their
logits), and exported.json. For that one our import and export run here, transformers loads what was
exported, and its logits and tensors are compared with those of the first model.

Run:   python tests/convert/make_fixtures.py                        (the committed files)
       python tests/convert/make_fixtures.py --seed 7 --out seven && \\
       python -m pytest tests/convert --checkpoints seven --slow all
Time:  half a minute, and several minutes for the environment the first time.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "oracles")]

import environments  # noqa: E402
from make_fixtures import interpreter  # noqa: E402  (of tests/oracles)

FIXTURES = HERE / "fixtures"


def export(fixture: pathlib.Path, out: pathlib.Path) -> str:
    """Imports a fixture and exports it again; returns the class that it is exported as."""
    from hybridlm import convert

    opened = convert.open_checkpoint(fixture)
    dtype = json.loads((fixture / "config.json").read_text())["dtype"]
    found = convert.export(
        opened.model,
        opened.params(),
        out,
        preferred=opened.family.architecture,
        length=opened.length,
        dtype=dtype,
        shard_bytes=30_000,  # several shards, and an index
    )
    return found.family.architecture


def main(arguments: Sequence[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=FIXTURES, metavar="DIR")
    parser.add_argument("--only", metavar="TEXT", default="", help="families with TEXT in the name")
    parser.add_argument(
        "--env",
        type=pathlib.Path,
        metavar="DIR",
        help="use this virtual environment, which has torch, transformers and numpy",
    )
    options = parser.parse_args(arguments)
    try:
        python = interpreter(options.env)
    except environments.Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    worker = [python, str(HERE / "references" / "write.py")]
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder) / "made"
        command = [*worker, "make", "--out", str(made), "--seed", str(options.seed)]
        variables = environments.variables()
        done = subprocess.run([*command, "--only", options.only], env=variables).returncode
        if done:
            return done
        exported = pathlib.Path(folder) / "exported"
        failed = []
        for fixture in sorted(made.iterdir()):
            try:
                export(fixture, exported / fixture.name)
            except Exception as error:
                print(f"{fixture.name}: {type(error).__name__}: {error}", file=sys.stderr)
                failed.append(fixture.name)
        command = [*worker, "check", "--out", str(made), "--exported", str(exported)]
        done = subprocess.run(command, env=variables).returncode
        for fixture in sorted(made.iterdir()):
            shutil.rmtree(options.out / fixture.name, ignore_errors=True)
            shutil.copytree(fixture, options.out / fixture.name)
    return done or bool(failed)


if __name__ == "__main__":
    sys.exit(main())
