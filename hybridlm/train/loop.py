"""The training loop: build, restore, compile, then step, log the previous step, evaluate, save."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import jax

from hybridlm.data import bigram_bits_per_byte, seen
from hybridlm.errors import TRY_AGAIN, RunError, UserError
from hybridlm.evals.perplexity import evaluate
from hybridlm.models.accounting import Work, active_parameters
from hybridlm.parallel import compilation_cache, hosts
from hybridlm.progress import doing, duration
from hybridlm.runs import checkpoint, lineage, metrics, workdir
from hybridlm.settings.plain import to_dict
from hybridlm.storage import own_name
from hybridlm.train import host_memory, preemption, setup
from hybridlm.train.init_plan import make_plan
from hybridlm.train.progress import Progress
from hybridlm.train.settings import Config, run_settings
from hybridlm.train.throughput import StepClock, memory_in_use, peak_flops
from hybridlm.train.watchdog import Watchdog


class TrainingAborted(UserError):
    """The run has diverged: too many updates in a row were skipped."""

    exit_code = 1


class Callback(Protocol):
    """Called after some training steps; its time is not counted in step times."""

    def begin(self, path: pathlib.Path, step: int) -> bool:
        """Called once, before the first step: the run starts or resumes after `step`.

        Files that grow belong into the folder `path` of this machine. Records of later steps must
        be dropped; the loop computes them again.

        Returns:
          Whether `on_step` of `step` itself is due and was not completed.
        """

    def due(self, step: int) -> bool:
        """Whether `on_step` is to be called after this step."""

    def on_step(self, step: int, params: Any) -> str:
        """Reads the parameters after `step`, flushes what it writes, and returns a log line."""

    def close(self) -> None: ...


class NoCallback:
    """A callback that is never due."""

    def begin(self, path: pathlib.Path, step: int) -> bool:
        return False

    def due(self, step: int) -> bool:
        return False

    def on_step(self, step: int, params: Any) -> str:
        raise RuntimeError("this callback is never due")

    def close(self) -> None: ...


def train(
    config: Config,
    path: pathlib.Path,
    progress: Progress | None = None,
    callback: Callback = NoCallback(),
) -> int:
    """Starts or resumes the run of `config` in `path`.

    Returns:
      The exit code: 0 when the run is complete, 75 when a signal stopped it after a save.

    Raises:
      UserError: for bad data, a workdir of another run, or a run that diverged.
    """
    if jax.config.jax_platforms == "cpu":
        host_memory.keep_large_buffers()  # before jax starts threads: running ones ignore it
    compilation_cache.use(config.train.compilation_cache)
    config, tokenizer = setup.resolve(config)
    plan = None
    if config.init is not None and not checkpoint.steps(path):
        with doing(f"looking at {config.init.path}, from which the run begins"):
            plan = make_plan(config, tokenizer)
    first = hosts.is_first()
    progress = progress or Progress(config.train.steps, None if first else open(os.devnull, "w"))
    open_workdir = workdir.Workdir.open if first else workdir.Workdir.follow
    settings = run_settings(config)
    folder = hosts.in_turn("opening the workdir", lambda: open_workdir(path, settings))
    try:
        with preemption.StopSignal() as stop, Watchdog(config.train.hang_seconds) as watchdog:
            pipeline = setup.read_data(config, folder.path)
            with _trackers(config, folder) as trackers:  # they may refuse: before compiling
                trainer = setup.build(config, folder.path, pipeline, plan)
                with jax.set_mesh(trainer.mesh):
                    return _train(trainer, folder, trackers, progress, stop, watchdog, callback)
    finally:
        folder.close()


def _train(
    trainer: setup.Trainer,
    folder: workdir.Workdir,
    trackers: list[metrics.WandbWriter],
    progress: Progress,
    stop: preemption.StopSignal,
    watchdog: Watchdog,
    callback: Callback,
) -> int:
    # --- start ---------------------------------------------------------------------------------
    config, path = trainer.config, folder.path
    steps, start = config.train.steps, trainer.start_step
    with hosts.fail_together("beginning the run"):
        writers, goes_on = metrics.Writers([]), False
        if hosts.is_first():
            writers, goes_on = _begin(config, folder, trackers, start)
    peak, peak_source = peak_flops(jax.devices())
    teacher_speed = _teacher_speed(trainer, folder)
    clock = StepClock(config.tokens_per_step, trainer.flops_per_step, peak)
    with doing("reading the held-out data"):
        heldout = trainer.heldout()
    _print_start(progress, config, trainer, peak, peak_source)

    def evaluation_is_due(step: int) -> bool:
        return step % config.train.eval_every == 0 or step == steps

    def log(step: int, values: dict[str, jax.Array], work: Work) -> None:
        """Waits for a step and records its metrics if they are due.

        Raises:
          TrainingAborted: after `train.abort_after` skipped updates in a row.
        """
        diverged = int(values["skipped_in_row"]) >= config.train.abort_after
        clock.tick(work)
        logged = step % config.train.log_every == 0 or step == steps
        if not logged and not diverged:
            return
        fetched = {name: value.item() for name, value in jax.device_get(values).items()}
        if diverged:
            raise _aborted(step, fetched, trainer, path)
        tokens, flops, *window = hosts.summed([*work, *clock.work])
        speed = clock.summary(Work(*window))
        remaining = (steps - step) * speed["step_seconds_p50"]
        record = {
            "kind": "train",
            "step": step,
            "tokens": trainer.tokens(step),
            "step_real_tokens": int(tokens),
            "step_real_flops": float(flops),
            **fetched,
            **speed,
            "eta_seconds": remaining,
            "compile_seconds": trainer.compile_seconds,
            "memory_bytes": memory_in_use(),
        }
        if teacher_speed:
            record["of_teacher_forward"] = speed["tokens_per_second"] / teacher_speed
        writers.write(record)
        progress.update(record)

    def save(step: int, state: Any) -> None:
        """Flushes the records up to this step, then starts a checkpoint."""
        writers.flush()
        facts = {"step": step, "next_batch": step, "tokens": trainer.tokens(step)}
        trainer.checkpoints.save(step, state, {**facts, "config": to_dict(config)})

    def measure(step: int, state: Any, evaluate_now: bool, callback_now: bool) -> None:
        """Evaluates and probes the state after `step`, outside of step times.

        Raises:
          RunError: as soon as it is known that the save in progress has failed.
        """
        with clock.paused():
            if evaluate_now:
                watchdog.beat(f"the evaluation after step {step}")
                with doing(f"evaluating step {step}"):
                    figures = _evaluate(trainer, state, heldout)
                writers.write({"kind": "eval", "step": step, **figures})
                progress.print(_eval_line(step, figures))
            if callback_now:
                watchdog.beat(f"the probes after step {step}")
                trainer.checkpoints.check()
                with doing(f"probing step {step}"):
                    line = callback.on_step(step, state["params"])
                progress.print(line)

    state, step, pending, saved, unmeasured = trainer.state, start, None, start, False
    recorded = metrics.read(folder.local / metrics.FILE) if hosts.is_first() else []
    unprobed = callback.begin(folder.local, start)
    batches = trainer.batches()
    stop_agreement = hosts.StopAgreement(trainer.mesh)
    try:
        # --- what the run left open when it ended at `start`, and its first records --------------
        evaluated = any(r["kind"] == "eval" and r["step"] == start for r in recorded)
        unevaluated = hosts.is_first() and evaluation_is_due(start) and not evaluated
        if start > trainer.first_step:
            measure(start, state, *(hosts.summed([unevaluated, unprobed]) > 0))
        if hosts.is_first():
            earlier = [r for r in recorded if r["kind"] == "run"]
            if goes_on or not earlier:
                facts = _run_facts(trainer, peak, peak_source, earlier)
                writers.write({"kind": "run", "step": start, **facts})
        if trainer.lineage and not trainer.is_begun:
            if hosts.is_first():
                lineage.write(path, trainer.lineage)
            with doing(f"saving step {start}"):
                save(start, state)  # with it, the run no longer needs its source

        # --- loop ------------------------------------------------------------------------------
        clock.restart()
        for step in range(start + 1, steps + 1):
            watchdog.beat(f"step {step}")
            trainer.checkpoints.check()
            with clock.waiting():
                own = next(batches)
                batch = trainer.device_batch(own)
            state, values = trainer.train_step(state, batch)
            work = trainer.work(own)
            if pending:
                log(*pending)
            pending = (step, values, work)

            # Read once per step: a signal received later counts for the next step.
            stopping = stop_agreement.should_stop(bool(stop.received))
            save_now = step % config.train.checkpoint_every == 0 or step == steps or stopping
            measurements = evaluation_is_due(step), callback.due(step)
            if save_now or any(measurements):
                log(*pending)
                pending = None
                if save_now:
                    watchdog.beat(f"the checkpoint of step {step}")
                    with clock.paused(), doing(f"saving step {step}"):
                        save(step, state)
                    saved = step
                if not stopping:
                    measure(step, state, *measurements)
            unmeasured = stopping and any(measurements)  # the run that resumes makes up for it
            if stopping:
                break
        watchdog.beat(f"the end of the checkpoint of step {saved}")
        with doing(f"finishing the checkpoint of step {saved}"):
            trainer.checkpoints.wait()
    except Exception as error:
        if jax.process_count() > 1:
            hosts.exit_process(error, f"step {step}")
        raise
    finally:
        batches.close()
        with contextlib.suppress(RunError):  # a failed save has been reported already
            trainer.checkpoints.close()
        callback.close()
        writers.close()
    if saved < steps or unmeasured:
        progress.print(
            f"{stop.received or 'a signal to another host'} received: saved step {saved} of {steps}"
            f" in {path}; the same command resumes from there"
        )
        return TRY_AGAIN
    for source in seen(config.data, trainer.pipeline.counts()["sources"], steps):
        progress.print(f"read of {source.name}: {source.text()}")
    return 0


@contextlib.contextmanager
def _trackers(config: Config, folder: workdir.Workdir) -> Iterator[list[metrics.WandbWriter]]:
    """Begins the run at other services, on the first host.

    Those that are still open when the context ends with an exception close the run as failed.

    Raises:
      UserError: if one refuses it, as without a login.
    """
    trackers = []
    beginning = "beginning the run at Weights & Biases"
    try:
        if config.train.wandb:
            with hosts.fail_together(beginning), doing(beginning):
                if hosts.is_first():
                    name, settings = own_name(folder.path), to_dict(config)
                    project, run_id = config.train.wandb, folder.keep_id()
                    trackers.append(metrics.WandbWriter(project, name, run_id, settings))
        yield trackers
    except BaseException:
        for tracker in trackers:
            tracker.fail()
        raise


def _begin(
    config: Config, folder: workdir.Workdir, trackers: list[metrics.WandbWriter], start: int
) -> tuple[metrics.Writers, bool]:
    """Writes the run's config and environment, and drops records after step `start`.

    Returns:
      (writers, whether the run in the folder goes on to another last step than before).
    """
    before = folder.begin(to_dict(config))
    goes_on = before is not None and before["train"]["steps"] != config.train.steps
    if goes_on:
        (folder.path / workdir.REPORT).unlink(missing_ok=True)  # of the run that was shorter
    workdir.record_environment(folder.path, jax.devices(), folder.run_id)
    metrics.cut_back(folder.local / metrics.FILE, start)
    return _writers(config, folder, trackers, start), goes_on


def _writers(
    config: Config, folder: workdir.Workdir, trackers: list[metrics.WandbWriter], start: int
) -> metrics.Writers:
    writers: list[metrics.Writer] = [metrics.JsonlWriter(folder.local / metrics.FILE)]
    if config.train.tensorboard:
        writers.append(metrics.TensorBoardWriter(folder.local / "tensorboard", start))
    return metrics.Writers([*writers, *trackers, *folder.uploads()])


def _run_facts(
    trainer: setup.Trainer, peak: float | None, peak_source: str, earlier: list[metrics.Record]
) -> dict[str, Any]:
    """The record of kind "run": sizes, data, the bigram baseline (of an `earlier` record)."""
    config = trainer.config
    facts = {
        "parameters": trainer.model.count(),
        "parameters_without_embedding": trainer.model.count(embeddings=False),
        "flops_per_token": trainer.flops_per_step / config.tokens_per_step,
        "peak_flops": peak,
        "peak_source": peak_source,
        "data": trainer.pipeline.counts(config.train.steps),
    }
    active = active_parameters(trainer.model)
    if active < facts["parameters"]:
        facts["active_parameters"] = active
    if not trainer.trainable.all:
        facts["trained_parameters"] = trainer.trainable.count(trainer.model)
    if trainer.teacher is not None:
        facts["teacher"] = (earlier[0].get("teacher") if earlier else None) or {
            "parameters_sha256": trainer.teacher.sha256,
            "tokens_per_second": trainer.teacher.tokens_per_second,
        }
    if earlier and "bigram" in earlier[0]:
        facts["bigram"] = earlier[0]["bigram"]
    elif config.data.bigram_baseline:
        with doing("fitting the bigram model"):
            result = bigram_bits_per_byte(trainer.pipeline, config.train.eval_sequences)
        facts["bigram"] = {"loss": result.nats_per_token, "bits_per_byte": result.bits_per_byte}
    return facts


def _teacher_speed(trainer: setup.Trainer, folder: workdir.Workdir) -> float | None:
    """Tokens a second of the teacher's forward pass; None without a teacher."""
    if trainer.teacher is None or trainer.teacher.tokens_per_second is not None:
        return trainer.teacher and trainer.teacher.tokens_per_second
    records = metrics.read(folder.local / metrics.FILE) if hosts.is_first() else []
    found = (r["teacher"]["tokens_per_second"] for r in records if "teacher" in r)
    return next(found, None)


def _print_start(
    progress: Progress, config: Config, trainer: setup.Trainer, peak: float | None, source: str
) -> None:
    start, steps = trainer.start_step, config.train.steps
    if trainer.lineage:
        progress.print(f"begun from {lineage.described(trainer.lineage)}")
    if start >= steps:
        progress.print(f"step {start} of {steps} is already done")
    elif trainer.is_begun:
        progress.print(f"resuming from step {start} of {steps}")
    names = " ".join(config.model.layout.labels)
    count, trained = trainer.model.count(), trainer.trainable.count(trainer.model)
    frozen = "" if trained == count else f" ({trained:,} of them trained)"
    active = active_parameters(trainer.model)
    used = "" if active == count else f", {active:,} for each token,"
    progress.print(
        f"{count:,} parameters{frozen}{used} in {config.model.depth} layers ({names});"
        f" {config.tokens_per_step:,} tokens a step; compiled in"
        f" {duration(trainer.compile_seconds)}"
    )
    if partial := config.model.layout.partial_unit:
        progress.print(f"model.depth {config.model.depth} leaves part of the pattern: {partial}")
    if config.teacher is not None:
        speed = trainer.teacher.tokens_per_second
        measured = f", {speed:,.0f} tokens/s forward" if speed else ""
        progress.print(f"{config.teacher.objective} towards {config.teacher.path}{measured}")
    if peak:
        progress.print(f"MFU is counted against {peak / 1e12:.3g} TFLOP/s ({source})")


def _evaluate(trainer: setup.Trainer, state: Any, heldout: Any) -> dict[str, Any]:
    """Held-out figures, with those of the moving average as `ema_loss` and `ema_bits_per_byte`."""

    def batches() -> Iterator[Any]:
        for batch in heldout:
            trainer.checkpoints.check()  # a save that failed is not told after the evaluation only
            yield batch

    figures = evaluate(trainer.eval_step, state["params"], batches())
    if "ema" in state:
        averaged = evaluate(trainer.eval_step, trainer.averaged(state), batches())
        figures |= {f"ema_{name}": averaged[name] for name in ("loss", "bits_per_byte")}
    return figures


def _eval_line(step: int, figures: dict[str, Any]) -> str:
    line = (
        f"held-out at step {step}: loss {figures['loss']:.4f} nats"
        f"  {figures['bits_per_byte']:.4f} bits/byte"
    )
    if "ema_loss" in figures:
        line += f"; moving average {figures['ema_loss']:.4f} nats"
    return line


def _aborted(
    step: int, fetched: dict[str, float], trainer: setup.Trainer, path: pathlib.Path
) -> TrainingAborted:
    latest = trainer.checkpoints.latest_step
    kept = "there is no checkpoint"
    if latest is not None:
        kept = f"the newest checkpoint is of step {latest}"
    return TrainingAborted(
        f"{fetched['skipped_in_row']:.0f} updates in a row were skipped up to step {step} (loss"
        f" {fetched['loss']:.4g}, gradient norm {fetched['grad_norm']:.4g}): the run has diverged;"
        f" {kept} in {path}; lower optimizer.lr or raise train.abort_after"
    )
