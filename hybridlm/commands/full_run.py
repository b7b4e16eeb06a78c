"""A full run: trains, generates the sample, writes the report and prints its path."""

import pathlib

import jax

from hybridlm.analysis.report import write_report
from hybridlm.errors import RunError
from hybridlm.generation.text import Sampling, generate_text
from hybridlm.parallel import hosts
from hybridlm.parallel.mesh import make_mesh
from hybridlm.parallel.settings import MeshConfig
from hybridlm.progress import doing
from hybridlm.runs import metrics, open_model
from hybridlm.storage import open_path
from hybridlm.storage.mirror import growing_file
from hybridlm.train.live_probes import live_probes
from hybridlm.train.loop import train
from hybridlm.train.settings import Config


def full_run(config: Config, path: pathlib.Path | str) -> int:
    """Trains `config` to its last step in workdir `path`, then reports; returns the exit code.

    Raises:
      UserError: see `hybridlm.train.loop.train`.
    """
    path = open_path(path)
    code = train(config, path, callback=live_probes(config))
    hosts.disconnect()
    if code == 0 and hosts.is_first():
        with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
            _sample(config, path)
        _summary(path)
        print(f"report: {write_report(path)}")
    return code


def _sample(config: Config, path: pathlib.Path) -> None:
    """Records a sample of the last step, if the config asks for one and none is recorded yet."""
    settings, file = config.sample, path / metrics.FILE
    recorded = {r["step"] for r in metrics.read(file) if r["kind"] == "sample"}
    if not settings.tokens or config.train.steps in recorded:
        return
    opened = open_model(path)
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    pieces = generate_text(
        opened.model,
        opened.params,
        opened.tokenizer,
        settings.prompt,
        settings.tokens,
        sampling,
        seed=config.seed,
    )
    try:
        with doing("generating the sample"):
            text = "".join(pieces)
    except RunError as error:  # the run is finished, and its report is still to be written
        print(f"no sample: {error}")
        return
    record = {"kind": "sample", "step": opened.step, "prompt": settings.prompt, "text": text}
    with growing_file(file) as local:
        writer = metrics.JsonlWriter(local)
        writer.write(record)
        writer.close()
    print(f"\nsample: {settings.prompt}{text}\n")


def _summary(path: pathlib.Path) -> None:
    records = metrics.read(path / metrics.FILE)
    last = [r for r in records if r["kind"] == "eval"][-1]
    print(f"held-out loss {last['loss']:.4f} nats, {last['bits_per_byte']:.4f} bits/byte")
    if "ema_loss" in last:
        print(
            f"the moving average of the parameters has {last['ema_loss']:.4f} nats,"
            f" {last['ema_bits_per_byte']:.4f} bits/byte"
        )
    facts = [r for r in records if r["kind"] == "run"][-1]
    if "bigram" in facts:
        bigram = facts["bigram"]
        print(
            f"a bigram model of the same corpus has {bigram['loss']:.4f} nats,"
            f" {bigram['bits_per_byte']:.4f} bits/byte"
        )
