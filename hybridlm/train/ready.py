"""Checks what a run will need before any device is touched and anything is compiled."""

import os
import re

import jax

from hybridlm.data.files import require_module
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError, StorageError, UserError
from hybridlm.parallel import mesh as meshes
from hybridlm.parallel.axes import AXES
from hybridlm.probes.needles import needle_prompts
from hybridlm.train import setup
from hybridlm.train.settings import Config


def check_ready(
    config: Config, files: bool = True, devices: int | None = None
) -> tuple[Config, Tokenizer]:
    """Checks packages, tokenizer, mesh, probes and the files of sources; uses no device.

    Args:
      files: whether the files of sources must be there, on this machine or in their bucket.
      devices: the number of devices, if it is known; then the whole mesh is checked.

    Returns:
      `setup.resolve(config)`: the config with its vocabulary size, and the tokenizer.

    Raises:
      UserError: what is missing or does not fit, and the setting that asks for it.
    """
    _check_packages(config)
    config, tokenizer = setup.resolve(config)
    if devices is None:  # an axis of -1 takes at least one
        shape = tuple(max(getattr(config.mesh, axis), 1) for axis in AXES)
    else:
        shape = meshes.mesh_shape(config.mesh, devices)
    setup.check_divides(config, shape)
    probes = config.probes
    if probes.which:
        length = probes.length or config.data.seq_len
        needle_prompts(tokenizer, length, probes.samples, config.seed)
    for name, source in config.data.sources.items():
        try:
            source.check(tokenizer, files)
        except (DataError, StorageError) as error:
            raise type(error)(f"data.sources.{name}: {error}") from None
    return config, tokenizer


def _check_packages(config: Config) -> None:
    for name, source in config.data.sources.items():
        for module in source.needs:
            require_module(module, "data", f"data.sources.{name} of kind {source.kind_name!r}")
    for setting, module, install in (
        ("tensorboard", "tensorboardX", "tensorboardX"),
        ("wandb", "wandb", "'hybridlm[wandb]'"),
    ):
        if getattr(config.train, setting):
            try:
                __import__(module)
            except ImportError as error:
                off = "False" if setting == "tensorboard" else "None"
                raise UserError(
                    f"train.{setting} needs {module} ({error}): pip install {install}, or set it to"
                    f" {off}"
                ) from None


def cpu_devices() -> int | None:
    """The number of this machine's devices if JAX may use CPUs only, else None."""
    if jax.config.jax_platforms != "cpu":
        return None
    flags = os.environ.get("XLA_FLAGS", "")
    count = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    return int(count[-1]) if count else max(jax.config.jax_num_cpu_devices, 1)
