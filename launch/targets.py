"""Launchers by the name that `--to` gives."""

import pathlib
from collections.abc import Callable

from hybridlm.errors import UserError
from hybridlm.settings.reader import nearest
from launch.job import Launcher
from launch.local import Local
from launch.site import Site, read_site
from launch.sky import Sky
from launch.slurm import Slurm
from launch.xpk import Xpk


def _local(site: Site, parallel: int | None) -> Launcher:
    return Local(site.local, parallel or 1)


def _slurm(site: Site, parallel: int | None) -> Launcher:
    return Slurm(site.slurm, parallel or site.slurm.array_parallelism)


def _xpk(site: Site, parallel: int | None) -> Launcher:
    if site.xpk is None:
        raise UserError(
            "xpk needs --site FILE.toml with a table [xpk]: cluster, tpu_type, root, and docker_image"
        )
    _check_no_parallel("xpk", "the cluster's queue", parallel)
    return Xpk(site.xpk)


def _sky(site: Site, parallel: int | None) -> Launcher:
    if site.sky is None:
        raise UserError(
            "sky needs --site FILE.toml with a table [sky]: accelerators and root at least"
        )
    _check_no_parallel("sky", "SkyPilot", parallel)
    return Sky(site.sky)


def _check_no_parallel(target: str, who: str, parallel: int | None) -> None:
    if parallel is not None:
        raise UserError(
            f"--parallel is of local and slurm: with {target}, {who} decides how many run at a time"
        )


TARGETS: dict[str, Callable[[Site, int | None], Launcher]] = {
    "local": _local,
    "slurm": _slurm,
    "xpk": _xpk,
    "sky": _sky,
}


def launcher(target: str, site: pathlib.Path | None, parallel: int | None) -> Launcher:
    """The launcher named `target`, set up by the site file.

    Args:
      target: a name in `TARGETS`.
      site: TOML file with the site's settings, or None.
      parallel: runs at one time at most, or None for the target's own default.

    Raises:
      UserError: one sentence about the name, the file or the number.
    """
    if target not in TARGETS:
        raise UserError(f"--to {target!r} is unknown: {nearest(target, TARGETS)}")
    if parallel is not None and parallel < 1:
        raise UserError(f"--parallel must be at least 1, not {parallel}")
    return TARGETS[target](read_site(site), parallel)
