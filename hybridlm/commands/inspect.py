"""`hybridlm inspect`: the state of a run or a model, with hashes to compare their parameters."""

import dataclasses
import pathlib

from hybridlm.commands.command import Command
from hybridlm.errors import RunError
from hybridlm.storage import open_path


@dataclasses.dataclass(frozen=True)
class InspectSettings:
    """Which run or model.

    Attributes:
      workdir: folder of a run, a model folder, or a checkpoint of transformers.
      step: step of the checkpoint; the newest by default.
      parameters: also list the parameters by name, as optimizer.freeze writes them.
      verify: also read every checkpoint (or that of `step`), or the model, and compare the checksum
        of every array.
    """

    workdir: pathlib.Path
    step: int | None = None
    parameters: bool = False
    verify: bool = False


def describe(workdir: pathlib.Path, step: int | None = None) -> str:
    """The state of the run, or the model, in `workdir`, as lines `key: value`.

    `parameters_sha256` covers the parameters of the checkpoint of `step` (default: the newest), and
    `state_sha256` the optimizer's state and the moving average too. Equal hashes mean equal bits.

    Raises:
      UserError: if there is no run and no model, or no such checkpoint.
    """
    from hybridlm.progress import doing

    with doing(f"reading {workdir}"):
        lines = _of_model(workdir, step) if _is_model(workdir) else _of_run(workdir, step)
        return "\n".join(f"{key}: {value}" for key, value in lines.items())


def _is_model(path: pathlib.Path) -> bool:
    """Whether it is a model folder or a checkpoint of transformers, and no run."""
    from hybridlm import convert
    from hybridlm.runs.opened import MODEL
    from hybridlm.runs.workdir import CONFIG

    path = open_path(path)
    if convert.is_checkpoint(path):
        return True
    return (path / MODEL).is_file() and not (path / CONFIG).is_file()


def _of_model(path: pathlib.Path, step: int | None) -> dict[str, object]:
    from hybridlm.models.params import Model
    from hybridlm.runs import lineage
    from hybridlm.runs.checkpoint import digest
    from hybridlm.runs.source import open_source

    source = open_source(path, step)
    lines: dict[str, object] = {"model": path}
    if source.lineage:
        lines["from"] = lineage.described(source.lineage)
    lines["parameters"] = f"{Model.of(source.model).count():,}"
    lines["parameters_sha256"] = digest(source.load(optimizer=False)["params"])
    return lines


def _of_run(workdir: pathlib.Path, step: int | None) -> dict[str, object]:
    from hybridlm.analysis.run import Run
    from hybridlm.runs import lineage
    from hybridlm.runs.checkpoint import digest, load_numpy, steps

    run = Run(workdir)
    found = steps(workdir)
    lines = {
        "workdir": workdir,
        "steps": f"{found[-1] if found else 0} of {run.config.train.steps}",
        "checkpoints": " ".join(map(str, found)) or "none",
    }
    if run.lineage:
        lines["begun_from"] = lineage.described(run.lineage)
    train, evals = run.train_records, run.eval_records
    if train:
        lines["train_loss"] = f"{train[-1]['loss']} nats at step {train[-1]['step']}"
    if evals:
        lines["heldout_loss"] = (
            f"{evals[-1]['loss']} nats, {evals[-1]['bits_per_byte']} bits/byte"
            f" at step {evals[-1]['step']}"
        )
        if "ema_loss" in evals[-1]:
            lines["heldout_ema_loss"] = (
                f"{evals[-1]['ema_loss']} nats, {evals[-1]['ema_bits_per_byte']} bits/byte"
                f" at step {evals[-1]['step']}"
            )
    if found or step is not None:
        at, state = load_numpy(workdir, step)
        lines["checkpoint"] = at
        lines["next_batch"] = int(state["step"])
        lines["skipped_updates"] = int(state["guard"]["skipped"])
        lines["parameters_sha256"] = digest(state["params"])
        ema = {"ema": state["ema"]} if "ema" in state else {}
        whole = {"params": state["params"], "opt": state["opt_state"], **ema}
        lines["state_sha256"] = digest(whole)
        for source in run.seen(at):
            lines[f"read of {source.name}"] = source.text()
    return lines


def _parameters(workdir: pathlib.Path, step: int | None) -> str:
    from hybridlm.analysis.run import Run
    from hybridlm.commands import parameters
    from hybridlm.models.params import Model
    from hybridlm.progress import doing
    from hybridlm.runs.source import open_source

    with doing("counting the parameters"):
        if _is_model(workdir):
            return "\n".join(parameters.table(Model.of(open_source(workdir, step).model), ""))
        config = Run(workdir).config
        return "\n".join(parameters.table(Model.of(config.model), config.optimizer.freeze))


def verify(workdir: pathlib.Path, step: int | None = None) -> str:
    """What the checksums of the checkpoints say, as lines `key: value`; all without `step`.

    Raises:
      RunError: if an array cannot be read or is not the one that was saved, after all were read.
    """
    from hybridlm.progress import doing
    from hybridlm.runs import checkpoint
    from hybridlm.runs.source import open_source

    def said(arrays: int | None) -> str:
        return "no checksums, but readable" if arrays is None else f"{arrays} arrays as saved"

    if _is_model(workdir):
        source = open_source(workdir, step)
        if source.converted is not None:
            raise RunError(f"{workdir} is a checkpoint of transformers, which has no checksums")
        with doing(f"verifying the model in {workdir}"):
            return f"verified: {said(checkpoint.verify_tree(source.folder, remedy=checkpoint.REWRITE))}"
    found = checkpoint.steps(workdir)
    asked = found if step is None else [checkpoint.find(workdir, step)]
    lines, damaged = [], []
    for at in asked:
        try:
            with doing(f"verifying the checkpoint of step {at}"):
                arrays = checkpoint.verify(workdir, at)
        except RunError as error:
            damaged.append(str(error))
            continue
        lines.append(f"verified_{at}: {said(arrays)}")
    if damaged:
        raise RunError("; ".join([*damaged, *lines]))
    return "\n".join(lines or ["verified: no checkpoint"])


def _run(settings: InspectSettings) -> int:
    if settings.verify:  # first, because the description reads a checkpoint too
        verified = verify(settings.workdir, settings.step)
    print(describe(settings.workdir, settings.step))
    if settings.parameters:
        print(f"\n{_parameters(settings.workdir, settings.step)}")
    if settings.verify:
        print(verified)
    return 0


INSPECT = Command(
    "inspect",
    "print the state of a run or a model, and a hash of its parameters",
    lambda: (InspectSettings,),
    _run,
    positional=("workdir",),
)
