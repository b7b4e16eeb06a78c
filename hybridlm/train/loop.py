"""The training loop: build, restore, compile, then step, log the step before, evaluate, save."""

import contextlib
import os
import pathlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from hybridlm.data import bigram_bits_per_byte
from hybridlm.errors import TRY_AGAIN, RunError, UserError
from hybridlm.evals.perplexity import evaluate
from hybridlm.parallel import hosts
from hybridlm.runs import metrics, workdir
from hybridlm.settings.plain import to_dict
from hybridlm.train import host_memory, preemption, setup
from hybridlm.train.progress import Progress, duration
from hybridlm.train.settings import Config, run_settings
from hybridlm.train.throughput import StepClock, memory_in_use, peak_flops
from hybridlm.train.watchdog import Watchdog


class TrainingAborted(UserError):
    """The run cannot go on by itself: too many updates in a row had to be skipped."""

    exit_code = 1


class Watch(Protocol):
    """What looks at the parameters while they train, from outside; its time belongs to no step."""

    def begin(self, path: pathlib.Path, step: int) -> None:
        """The run in `path` goes on after `step`: what was written of later ones is void."""

    def due(self, step: int) -> bool:
        """Whether it wants to look after this step."""

    def look(self, step: int, params: Any) -> str:
        """Looks, writes what it saw safely, and returns a line to say."""

    def close(self) -> None: ...


class NoWatch:
    """Nobody looks."""

    def begin(self, path: pathlib.Path, step: int) -> None: ...

    def due(self, step: int) -> bool:
        return False

    def look(self, step: int, params: Any) -> str:
        raise RuntimeError("it is never due")

    def close(self) -> None: ...


def train(
    config: Config, path: pathlib.Path, progress: Progress | None = None, watch: Watch = NoWatch()
) -> int:
    """Trains, or goes on training, the run of `config` in `path`.

    Returns the exit code: 0 when the run is complete, 75 when it was asked to stop and saved.

    Raises:
      UserError: for bad data, a workdir of another run, or a run that diverged.
    """
    if jax.config.jax_platforms == "cpu":
        host_memory.keep_large_buffers()  # before jax has threads: some would not heed it later
    config, _ = setup.resolve(config)
    first = hosts.is_first()
    progress = progress or Progress(config.train.steps, None if first else open(os.devnull, "w"))
    enter = workdir.Workdir.open if first else workdir.Workdir.follow
    folder = hosts.in_turn("opening the workdir", lambda: enter(path, run_settings(config)))
    try:
        with preemption.StopSignal() as stop, Watchdog(config.train.hang_seconds) as watchdog:
            progress.say("reading the data and compiling the training step")
            trainer = setup.build(config, folder.path)
            with jax.set_mesh(trainer.mesh):
                return _train(trainer, folder, progress, stop, watchdog, watch)
    finally:
        folder.close()


def _train(
    trainer: setup.Trainer,
    folder: workdir.Workdir,
    progress: Progress,
    stop: preemption.StopSignal,
    watchdog: Watchdog,
    watch: Watch,
) -> int:
    # --- begin ---------------------------------------------------------------------------------
    config, path = trainer.config, folder.path
    steps, start = config.train.steps, trainer.start_step
    with hosts.together("beginning the run"):
        writers = _begin(config, folder, start) if hosts.is_first() else metrics.Writers([])
    peak, peak_source = peak_flops(jax.devices())
    clock = StepClock(config.tokens_per_step, trainer.flops_per_step, peak)
    heldout = trainer.heldout()
    _say_start(progress, config, trainer, peak, peak_source)
    if hosts.is_first() and not any(r["kind"] == "run" for r in metrics.read(path / metrics.FILE)):
        writers.write({"kind": "run", "step": start, **_facts(trainer, peak, peak_source)})

    def log(step: int, values: dict[str, jax.Array]) -> None:
        """Waits for a step, records the metrics of those to log; ends a run that diverges."""
        diverged = int(values["skipped_in_row"]) >= config.train.abort_after
        clock.tick()
        logged = step % config.train.log_every == 0 or step == steps
        if not logged and not diverged:
            return
        fetched = {name: value.item() for name, value in jax.device_get(values).items()}
        if diverged:
            raise _aborted(step, fetched, trainer, path)
        speed = clock.summary()
        remaining = (steps - step) * speed["step_seconds_p50"]
        record = {
            "kind": "train",
            "step": step,
            "tokens": step * config.tokens_per_step,
            **fetched,
            **speed,
            "eta_seconds": remaining,
            "compile_seconds": trainer.compile_seconds,
            "memory_bytes": memory_in_use(),
        }
        writers.write(record)
        progress.update(record)

    def save(step: int, state: Any) -> None:
        """Starts a checkpoint; every record up to its step is on disk before."""
        writers.flush()
        if jax.default_backend() == "cpu":
            # A host view of a CPU array shares its memory, which the next step would overwrite.
            state = jax.tree.map(jnp.copy, state)
        facts = {"step": step, "next_batch": step, "tokens": step * config.tokens_per_step}
        trainer.checkpoints.save(step, state, {**facts, "config": to_dict(config)})

    # --- loop ----------------------------------------------------------------------------------
    state, pending, saved = trainer.state, None, start
    batches = trainer.batches()
    vote = hosts.Vote(trainer.mesh)
    watch.begin(path, start)
    clock.restart()
    try:
        for step in range(start + 1, steps + 1):
            watchdog.beat(f"step {step}")
            with clock.waiting():
                batch = trainer.device_batch(next(batches))
            state, values = trainer.train_step(state, batch)
            if pending:
                log(*pending)
            pending = (step, values)

            stopping = vote.stop(bool(stop.received))  # asked once: a later signal is the next's
            evaluate_now = step % config.train.eval_every == 0 or step == steps
            save_now = step % config.train.checkpoint_every == 0 or step == steps or stopping
            watch_now = watch.due(step)
            if evaluate_now or save_now or watch_now:
                log(*pending)
                pending = None
                with clock.paused():
                    if evaluate_now:
                        watchdog.beat(f"the evaluation after step {step}")
                        figures = evaluate(trainer.eval_step, state["params"], heldout)
                        writers.write({"kind": "eval", "step": step, **figures})
                        progress.say(_eval_line(step, figures))
                    if watch_now:
                        watchdog.beat(f"the probes after step {step}")
                        progress.say(watch.look(step, state["params"]))
                    if save_now:
                        watchdog.beat(f"the checkpoint of step {step}")
                        save(step, state)
                        saved = step
            if stopping:
                break
        watchdog.beat(f"the end of the checkpoint of step {saved}")
        trainer.checkpoints.wait()
    except Exception as error:
        if jax.process_count() > 1:
            hosts.end(error, f"step {step}")
        raise
    finally:
        batches.close()
        with contextlib.suppress(RunError):  # where a save failed, that was said
            trainer.checkpoints.close()
        watch.close()
        writers.close()
    if saved < steps:
        progress.say(
            f"{stop.received or 'a signal to another host'} received: saved step {saved} of {steps}"
            f" in {path}; the same command goes on from there"
        )
        return TRY_AGAIN
    return 0


def _begin(config: Config, folder: workdir.Workdir, start: int) -> metrics.Writers:
    """Makes the folder the run's, and its records those up to step `start`."""
    folder.begin(to_dict(config))
    workdir.record_environment(folder.path, jax.devices())
    metrics.cut_back(folder.path / metrics.FILE, start)
    return _writers(config, folder.path, start)


def _writers(config: Config, path: pathlib.Path, start: int) -> metrics.Writers:
    writers: list[metrics.Writer] = [metrics.JsonlWriter(path / metrics.FILE)]
    if config.train.tensorboard:
        writers.append(metrics.TensorBoardWriter(path / "tensorboard", start))
    if config.train.wandb:
        writers.append(metrics.WandbWriter(config.train.wandb, path, to_dict(config)))
    return metrics.Writers(writers)


def _facts(trainer: setup.Trainer, peak: float | None, peak_source: str) -> dict[str, Any]:
    """What is said once about a run: sizes, data, the baseline."""
    config = trainer.config
    facts = {
        "parameters": trainer.model.count(),
        "parameters_without_embedding": trainer.model.count(embeddings=False),
        "flops_per_token": trainer.flops_per_step / config.tokens_per_step,
        "peak_flops": peak,
        "peak_source": peak_source,
        "data": trainer.pipeline.counts(config.train.steps),
    }
    if config.data.bigram_baseline:
        result = bigram_bits_per_byte(trainer.pipeline, config.train.eval_sequences)
        facts["bigram"] = {"loss": result.nats_per_token, "bits_per_byte": result.bits_per_byte}
    return facts


def _say_start(
    progress: Progress, config: Config, trainer: setup.Trainer, peak: float | None, source: str
) -> None:
    start, steps = trainer.start_step, config.train.steps
    if start >= steps:
        progress.say(f"step {start} of {steps} is already done")
    elif start:
        progress.say(f"resuming from step {start} of {steps}")
    names = " ".join(config.model.layout.names)
    progress.say(
        f"{trainer.model.count():,} parameters in {config.model.depth} layers ({names});"
        f" {config.tokens_per_step:,} tokens a step; compiled in"
        f" {duration(trainer.compile_seconds)}"
    )
    if peak:
        progress.say(f"MFU is counted against {peak / 1e12:.3g} TFLOP/s ({source})")


def _eval_line(step: int, figures: dict[str, Any]) -> str:
    return (
        f"held-out at step {step}: loss {figures['loss']:.4f} nats"
        f"  {figures['bits_per_byte']:.4f} bits/byte"
    )


def _aborted(
    step: int, fetched: dict[str, float], trainer: setup.Trainer, path: pathlib.Path
) -> TrainingAborted:
    latest = trainer.checkpoints.latest_step
    kept = f"the newest checkpoint is of step {latest}" if latest else "there is no checkpoint"
    return TrainingAborted(
        f"{fetched['skipped_in_row']:.0f} updates in a row were skipped up to step {step} (loss"
        f" {fetched['loss']:.4g}, gradient norm {fetched['grad_norm']:.4g}): the run has diverged;"
        f" {kept} in {path}; lower optimizer.lr or raise train.abort_after"
    )
