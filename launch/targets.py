"""Launchers by target, the name given by `--to`."""

import pathlib
from collections.abc import Callable

from hybridlm.errors import UserError
from hybridlm.settings.names import nearest
from launch.job import Launcher
from launch.local import LocalLauncher
from launch.site import Site, read_site
from launch.sky import SkyLauncher
from launch.slurm import SlurmLauncher
from launch.xpk import XpkLauncher


def _local(site: Site, parallel: int | None) -> Launcher:
    return LocalLauncher(site.local, parallel or 1)


def _slurm(site: Site, parallel: int | None) -> Launcher:
    return SlurmLauncher(site.slurm, parallel or site.slurm.array_parallelism)


def _xpk(site: Site, parallel: int | None) -> Launcher:
    if site.xpk is None:
        raise UserError(
            "xpk needs --site FILE.toml with a table [xpk]: cluster, tpu_type, root, and docker_image"
        )
    _check_no_parallel("xpk", "the cluster's queue", parallel)
    return XpkLauncher(site.xpk)


def _sky(site: Site, parallel: int | None) -> Launcher:
    if site.sky is None:
        raise UserError(
            "sky needs --site FILE.toml with a table [sky]: accelerators and root at least"
        )
    _check_no_parallel("sky", "SkyPilot", parallel)
    return SkyLauncher(site.sky)


def _check_no_parallel(target: str, scheduler: str, parallel: int | None) -> None:
    if parallel is not None:
        raise UserError(
            f"--parallel is only for local and slurm; with {target}, {scheduler} limits the runs"
        )


TARGETS: dict[str, Callable[[Site, int | None], Launcher]] = {
    "local": _local,
    "slurm": _slurm,
    "xpk": _xpk,
    "sky": _sky,
}


def launcher(target: str, site: pathlib.Path | None, parallel: int | None) -> Launcher:
    """The launcher of `target` with the settings of the site file.

    Args:
      target: a name in `TARGETS`.
      site: TOML file with the site's settings, or None.
      parallel: maximum number of concurrent runs, or None for the target's default.

    Raises:
      UserError: if the target, the site file or `parallel` is invalid.
    """
    if target not in TARGETS:
        raise UserError(f"--to {target!r} is unknown: {nearest(target, TARGETS)}")
    if parallel is not None and parallel < 1:
        raise UserError(f"--parallel must be at least 1, not {parallel}")
    return TARGETS[target](read_site(site), parallel)
