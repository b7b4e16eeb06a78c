"""`hybridlm train --dry_run`: the resolved config and the cost of the run; uses no device."""

from hybridlm.analysis.cost import memory
from hybridlm.commands import parameters
from hybridlm.data import Tokenizer
from hybridlm.models.accounting import active_parameters, layer_table
from hybridlm.models.params import Model
from hybridlm.models.trainable import Trainable
from hybridlm.settings import json_text
from hybridlm.settings.plain import to_dict
from hybridlm.storage import open_path
from hybridlm.train.init_plan import make_plan
from hybridlm.train.ready import check_ready
from hybridlm.train.settings import Config
from hybridlm.train.setup import costs


def describe(config: Config, show_config: bool = False) -> str:
    """Text for a terminal: parameters, layers, FLOPs, tokens and memory.

    Args:
      show_config: begin with the whole config as JSON.
    """
    config, tokenizer = check_ready(config, files=False)
    begins = _begins(config, tokenizer)
    model = Model.of(config.model)
    seq_len = config.data.seq_len
    flops, _ = costs(config, model)
    tokens = config.tokens_per_step * config.train.steps
    needed = memory(config, model)
    lines = [json_text.dumps(to_dict(config), indent=2), ""] if show_config else []
    lines += ["parameters by name", "", *parameters.table(model, config.optimizer.freeze)]
    lines += ["", "layer  mixer", ""]
    rows = layer_table(model, seq_len)
    for i, row in zip(
        ["", *range(len(rows) - 2), ""], rows
    ):  # layer numbers as in the report and probes
        active = "" if row.active in (None, row.parameters) else f" ({row.active:,} active)"
        lines.append(
            f"{i:>5}  {row.name:<12} {row.mechanism:<32} {row.parameters:>14,} parameters"
            f" {row.flops_per_token / 1e6:>10,.3f} MFLOP/token{active}"
        )
    active = active_parameters(model)
    lines += [
        "",
        f"parameters          {model.count():,} ({model.count(embeddings=False):,} without embedding)",
        *(
            [f"active parameters   {active:,}, which one token uses"]
            if active < model.count()
            else []
        ),
        f"trained parameters  {Trainable.of(model, config.optimizer.freeze).count(model):,}",
        f"FLOPs per token     {flops:,.0f} (forward and backward, at {seq_len} tokens)",
        f"training tokens     {tokens:,} in {config.train.steps:,} steps of"
        f" {config.tokens_per_step:,}, padding included",
        f"training FLOPs      {flops * tokens:.4g} (padding included, a row as one document)",
        f"memory, estimated   {_size(needed.total)}: parameters {_size(needed.parameters)},"
        f" gradients {_size(needed.gradients)}, optimizer {_size(needed.optimizer)},"
        f" activations {_size(needed.activations)}"
        + (f", moving average {_size(needed.ema)}" if needed.ema else "")
        + (f", teacher {_size(needed.teacher)}" if needed.teacher else ""),
    ]
    if partial := config.model.layout.partial_unit:
        lines.append(f"depth {config.model.depth:<14}{partial}")
    return "\n".join([*lines, *begins])


def _begins(config: Config, tokenizer: Tokenizer) -> list[str]:
    """What the run begins from; its cost can be told where that is not there yet."""
    if config.init is None:
        return []
    if not open_path(config.init.path).exists():
        return [f"init.path {config.init.path} is not there: the run is refused until it is"]
    return [make_plan(config, tokenizer).describe()]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
