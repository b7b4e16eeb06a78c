"""A stub of `hybridlm train` for the tests of launchers, without JAX.

It counts steps of 50 ms. On SIGTERM it saves and exits with 75; the next start continues from
there. With a learning rate of 1e30 it fails. Like a real run it exits unsaved at a second SIGTERM.
"""

import json
import os
import pathlib
import signal
import sys
import time

options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:] if "=" in word)
workdir = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
workdir.mkdir(parents=True, exist_ok=True)
steps = int(options["config.train.steps"])
saved = workdir / "saved"
signals = []


def stop(number, _):
    if signals:
        os._exit(130)
    signals.append(number)


signal.signal(signal.SIGTERM, stop)
start = int(saved.read_text()) if saved.exists() else 0
with (workdir / "sessions").open("a") as file:
    mine = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "SITE")}
    file.write(json.dumps({"start": start, "at": time.time(), **mine}) + "\n")
print(f"from step {start}", flush=True)
if options.get("config.optimizer.lr") == "1e+30":
    print("hybridlm: the run has diverged", file=sys.stderr)
    sys.exit(1)
with (workdir / "metrics.jsonl").open("a") as records:
    for step in range(start + 1, steps + 1):
        time.sleep(0.05)
        records.write(json.dumps({"kind": "train", "step": step, "loss": 5 - step / 1000}) + "\n")
        records.flush()
        if signals:
            time.sleep(0.2)  # a save takes time, during which a second signal would end it
            saved.write_text(str(step))
            sys.exit(75)
    records.write(json.dumps({"kind": "eval", "step": steps, "loss": 4.5}) + "\n")
saved.write_text(str(steps))
with (workdir / "sessions").open("a") as file:
    file.write(json.dumps({"end": time.time()}) + "\n")
