"""The command line.

`hybridlm train|compile|sweep|generate|eval|probe|inspect|report|tokenize|train-tokenizer`
"""

import argparse
import dataclasses
import io
import logging
import os
import pathlib
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn

from hybridlm import __version__
from hybridlm.errors import UserError
from hybridlm.settings.reader import nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (2 for a mistake of the user's, said in a line)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    if not argv:
        parser.print_help()
        return 2
    # Orbax logs the traceback of each of its threads over a full disk; what it raises is said here.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):  # a sample may hold what the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if argv[0] not in commands and not argv[0].startswith("-"):
            raise UserError(f"unknown command {argv[0]!r}: {nearest(argv[0], commands)}")
        arguments, rest = parser.parse_known_args(argv)
        if not hasattr(arguments, "run"):
            raise UserError(f"unknown argument {rest[0]!r}: see `hybridlm --help`")
        return arguments.run(arguments, _overrides(rest, arguments))
    except UserError as error:
        print(f"hybridlm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hybridlm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"hybridlm: {error.filename}: {error.strerror}", file=sys.stderr)
        return UserError.exit_code


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def _path(text: str) -> pathlib.Path:
    if not text:
        raise UserError("a path is empty: name a file or folder ('.' is this one)")
    return pathlib.Path(text)


_NOT_OPTIONS = ("run", "takes_overrides")


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """The parser, and the names of its commands."""
    parser = _Parser(prog="hybridlm", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"hybridlm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run, help: str, takes_overrides: bool = False):
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run, takes_overrides=takes_overrides)
        return sub

    train = command(
        "train", _train, "train a model from a config, or go on with a run", takes_overrides=True
    )
    train.add_argument("--config", required=True, help="recipe: file.py or file.py:argument")
    train.add_argument("--workdir", type=_path, help="folder of the run")
    train.add_argument(
        "--dry_run", action="store_true", help="print what would be trained, and what it costs"
    )
    train.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, on many hosts")
    train.add_argument("--num_processes", type=int, help="how many hosts there are")
    train.add_argument("--process_id", type=int, help="which one this is, from 0")
    train.add_argument(
        "--cluster",
        default="auto",
        help="launcher that says all this: auto, none, slurm, ompi, tpu",
    )
    train.epilog = "Any setting: --config.a.b=value (a Python literal, or text)."

    ahead = command(
        "compile",
        _compile,
        "compile the training step for TPUs or GPUs that are not there, and say"
        " what it needs of them",
        takes_overrides=True,
    )
    ahead.add_argument("--config", required=True, help="recipe: file.py or file.py:argument")
    ahead.add_argument(
        "--topology", required=True, help="chip:shape, e.g. v5e:4x4, v5p:8x8x8, h100:8"
    )
    ahead.add_argument("--slices", type=int, default=1, help="of that topology; default 1")
    ahead.add_argument("--out", type=_path, help="folder for report.json and the compiled step")
    ahead.epilog = "Any setting: --config.a.b=value. Exit code 1: it does not fit."

    sweep = command(
        "sweep", _sweep, "train every run that the sweep() of a config yields", takes_overrides=True
    )
    sweep.add_argument("--config", required=True, help="recipe: file.py or file.py:argument")
    sweep.add_argument("--root", type=_path, required=True, help="folder of the runs' folders")
    sweep.add_argument("--to", default="local", help="local (default), slurm, xpk or sky")
    sweep.add_argument("--site", type=_path, help="TOML file: a table of settings for each target")
    sweep.add_argument("--parallel", type=int, help="runs at one time (local: 1 by default)")
    sweep.add_argument("--dry_run", action="store_true", help="only show the runs and their cost")
    sweep.add_argument("--yes", action="store_true", help="submit without being asked")
    sweep.epilog = "A setting of every run: --config.a.b=value. Exit code 75: stopped; go on."

    generate = command("generate", _generate, "continue a prompt with a trained model")
    generate.add_argument("--workdir", type=_path, required=True, help="folder of a run")
    generate.add_argument("--prompt", default="", help="how the document begins")
    generate.add_argument("--tokens", type=int, default=200, help="tokens to generate at most")
    generate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    generate.add_argument("--top_k", type=int, help="draw among the k likeliest tokens")
    generate.add_argument("--top_p", type=float, help="draw among the likeliest with this share")
    generate.add_argument("--seed", type=int, default=0, help="same seed, same text")
    generate.add_argument("--step", type=int, help="checkpoint; the newest by default")

    evaluation = command("eval", _eval, "evaluate a trained model on long-context tasks")
    evaluation.add_argument("--workdir", type=_path, required=True, help="folder of a run")
    evaluation.add_argument(
        "--tasks",
        required=True,
        help="names with commas between: perplexity, longppl, needle, niah_single_1, ..., qa_2,"
        " mqar, fda, swde, squad, drop, nq, triviaqa",
    )
    evaluation.add_argument("--lengths", required=True, help="tokens, with commas between")
    evaluation.add_argument("--samples", type=int, default=20, help="of each task and length")
    evaluation.add_argument("--seed", type=int, default=0, help="of the samples")
    evaluation.add_argument("--batch", type=int, default=8, help="sequences at once")
    evaluation.add_argument("--out", type=_path, required=True, help="folder to write")
    evaluation.add_argument("--step", type=int, help="checkpoint; the newest by default")
    evaluation.add_argument("--trunc_len", type=int, default=4096, help="LongPPL's short context")
    evaluation.add_argument("--sliding_window", type=int, default=1024, help="LongPPL's advance")
    evaluation.add_argument("--evaluator", type=_path, help="run that finds LongPPL's key tokens")
    evaluation.add_argument("--squad", type=_path, help="SQuAD JSON file for qa_1")
    evaluation.add_argument("--hotpotqa", type=_path, help="HotpotQA JSON file for qa_2")
    evaluation.add_argument("--recall", type=_path, help="folder of recall files, NAME.jsonl")
    evaluation.add_argument("--pairs", type=int, help="of mqar; a 16th of the length by default")
    evaluation.add_argument(
        "--logit_scale",
        type=float,
        help="a: NoPE layers' logits times log_a(t + a), beyond training",
    )
    evaluation.add_argument("--rope_theta", type=float, help="RoPE's base in global layers")
    evaluation.add_argument("--yarn", type=float, help="YaRN's factor in global layers")

    probe = command("probe", _probe, "look inside a trained model, on one checkpoint or all")
    probe.add_argument("--workdir", type=_path, required=True, help="folder of a run")
    probe.add_argument(
        "--probes",
        required=True,
        help="names with commas between: retrieval_heads, entropy, qk_distance,"
        " gradient_influence, receptive_field, layer_probing, head_masking, slot_share",
    )
    probe.add_argument("--out", type=_path, required=True, help="folder to write")
    probe.add_argument("--step", help="checkpoint, or all; the newest by default")
    probe.add_argument("--length", type=int, help="tokens; those of training by default")
    probe.add_argument("--samples", type=int, default=20, help="prompts, and texts")
    probe.add_argument("--seed", type=int, default=0, help="of the prompts")
    probe.add_argument("--batch", type=int, default=8, help="sequences at once")
    probe.add_argument("--top_k", type=int, default=4, help="retrieval heads to follow and mask")
    probe.add_argument("--by", default="mass", help="score that chooses them: mass or copy")
    probe.add_argument("--draws", type=int, default=5, help="random sets of heads to mask")
    probe.add_argument("--layers", help="to restrict: mixer names or numbers; each mixer in turn")
    probe.add_argument("--windows", help="to restrict to, in tokens, with commas between")
    probe.add_argument("--truncate", action="store_true", help="restrict by context, not window")
    probe.add_argument("--classified", type=int, default=200, help="prompts of layer_probing")
    probe.add_argument("--classes", default="hard", help="of layer_probing: hard or easy")

    inspect = command("inspect", _inspect, "print the state of a run and a hash of its parameters")
    inspect.add_argument("workdir", type=_path, metavar="WORKDIR")
    inspect.add_argument("--step", type=int, help="checkpoint; the newest by default")

    report = command("report", _report, "write the report of a run, finished or not")
    report.add_argument("--workdir", type=_path, required=True, help="folder of a run")

    tokenize = command("tokenize", _tokenize, "write token shards of a source, once, in parallel")
    _source_options(tokenize)
    tokenize.add_argument("--tokenizer", default="bytes", help="bytes, hf or sentencepiece")
    tokenize.add_argument("--tokenizer_path", help="file of an hf or sentencepiece tokenizer")
    tokenize.add_argument("--out", type=_path, required=True, help="folder to write")
    tokenize.add_argument("--heldout_fraction", type=float, default=0.05)
    tokenize.add_argument("--processes", type=int, default=os.cpu_count())

    bpe = command("train-tokenizer", _train_tokenizer, "train a byte-level BPE on a source")
    _source_options(bpe)
    bpe.add_argument("--vocab_size", type=int, required=True, help="tokens, specials included")
    bpe.add_argument("--out", type=_path, required=True, help="tokenizer.json to write")
    return parser, commands.choices


def _source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, help="file or glob")
    parser.add_argument(
        "--kind", default="text", help="text, jsonl, parquet or arrayrecord (default: text)"
    )
    parser.add_argument("--text_key", default="text", help="field or column of the text")


def _train(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from hybridlm import config as configs

    config = configs.load(arguments.config, overrides)
    if arguments.dry_run:
        from hybridlm.analysis.dry_run import describe

        print(describe(config))
        return 0
    if arguments.workdir is None:
        raise UserError("train needs --workdir, the folder of the run (or --dry_run)")
    from hybridlm.parallel import hosts
    from hybridlm.run import run

    where = hosts.address(arguments.coordinator, arguments.num_processes, arguments.process_id)
    hosts.start(where, arguments.cluster, os.environ)
    return run(config, arguments.workdir)


def _compile(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from hybridlm import config as configs
    from hybridlm.aot.run import run

    config = configs.load(arguments.config, overrides)
    return run(config, arguments.topology, arguments.slices, arguments.out)


def _sweep(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    # The one place below `launch` that knows it: asked for by a person, when it is asked for.
    from launch.command import run_sweep

    given = {name: value for name, value in vars(arguments).items() if name not in _NOT_OPTIONS}
    return run_sweep(**given, overrides=overrides)


def _generate(arguments: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from hybridlm.generation import text as generation
    from hybridlm.runs import open_model

    sampling = generation.Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    generation.check_sampling(sampling, arguments.tokens, arguments.prompt, arguments.seed)
    opened = open_model(arguments.workdir, arguments.step)
    print(arguments.prompt, end="", flush=True)
    for text in generation.generate_text(
        opened.model,
        opened.params,
        opened.tokenizer,
        arguments.prompt,
        arguments.tokens,
        sampling,
        seed=arguments.seed,
    ):
        print(text, end="", flush=True)
    print()
    return 0


def _eval(arguments: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from hybridlm.analysis.evaluation import evaluate_run
    from hybridlm.evals.suite import Settings

    names = [f.name for f in dataclasses.fields(Settings)]
    given = {name: getattr(arguments, name) for name in names}
    given["tasks"] = tuple(arguments.tasks.split(","))
    given["lengths"] = _numbers("--lengths", arguments.lengths)
    text = evaluate_run(arguments.workdir, Settings(**given), arguments.out, arguments.step)
    print(f"\n{text}\n\nwritten to {arguments.out}")
    return 0


def _probe(arguments: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from hybridlm.probes.suite import Settings, probe_run

    names = [f.name for f in dataclasses.fields(Settings)]
    given = {name: getattr(arguments, name) for name in names}
    given["probes"] = tuple(arguments.probes.split(","))
    if arguments.layers is not None:
        given["layers"] = tuple(arguments.layers.split(","))
    given["windows"] = _numbers("--windows", arguments.windows)
    step = arguments.step
    if step is not None and step != "all":
        try:
            step = int(step)
        except ValueError:
            raise UserError(f"--step must be a whole number or all, not {step!r}") from None
    text = probe_run(arguments.workdir, Settings(**given), arguments.out, step)
    print(f"\n{text}\n\nwritten to {arguments.out}")
    return 0


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(
            f"{option} must be whole numbers with commas between, not {text!r}"
        ) from None


def _inspect(arguments: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from hybridlm.analysis.inspect import describe

    print(describe(arguments.workdir, arguments.step))
    return 0


def _report(arguments: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from hybridlm.analysis.report import write_report

    print(write_report(arguments.workdir))
    return 0


def _tokenize(arguments: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from hybridlm import data
    from hybridlm.config import TokenizerConfig

    tokenizer_settings = {"kind": arguments.tokenizer, "path": arguments.tokenizer_path}
    tokenizer = data.open_tokenizer(_read(TokenizerConfig, tokenizer_settings, "tokenizer"))
    shards = data.tokenize(
        _source(arguments),
        tokenizer,
        arguments.out,
        arguments.heldout_fraction,
        arguments.processes,
    )
    del shards
    opened = data.open_shards(arguments.out, tokenizer=tokenizer)
    for name in ("train", "heldout"):
        split = getattr(opened, name)
        print(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"
        )
    print(f"written to {arguments.out}")
    return 0


def _train_tokenizer(arguments: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from hybridlm import data

    source = _source(arguments)
    data.train_bpe(data.read_documents(source), arguments.vocab_size, arguments.out)
    print(f"written to {arguments.out}")
    return 0


def _source(arguments: argparse.Namespace):
    from hybridlm.config import SourceConfig

    settings = {"kind": arguments.kind, "path": arguments.source, "text_key": arguments.text_key}
    return _read(SourceConfig, settings, "source")


def _read(cls, settings, path):
    from hybridlm.settings.reader import read_dataclass

    return read_dataclass(cls, settings, path)


def _overrides(rest: list[str], arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """(key, text) pairs of `--config.a.b=value` and `--config.a.b value`, of a command with them.

    Raises:
      UserError: for any other word that the command's parser left over, or a key without value.
    """
    pairs = []
    words = iter(rest)
    for word in words:
        if not (arguments.takes_overrides and word.startswith("--config.")):
            options = [f"--{name}" for name in vars(arguments) if name not in _NOT_OPTIONS]
            settings = " (settings are --config.a.b=value)" if arguments.takes_overrides else ""
            hint = nearest(word.partition("=")[0].replace("-", "_").replace("__", "--", 1), options)
            raise UserError(f"unknown argument {word!r}: {hint}{settings}")
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            text = next(words, None)
            if text is None:
                raise UserError(f"--config.{key} has no value: write --config.{key}=value")
        pairs.append((key, text))
    return pairs


if __name__ == "__main__":
    sys.exit(main())
