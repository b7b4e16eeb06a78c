"""Starts a run on this host, or prints what it would do."""

import os

from hybridlm.commands.shared import StartSettings
from hybridlm.config import Config
from hybridlm.errors import UserError


def start(config: Config, settings: StartSettings, command: str) -> int:
    """Runs `config` to its end, or prints what it would do; returns the exit code.

    Raises:
      UserError: if there is no workdir, and as `hybridlm.train.loop.train` does.
    """
    if settings.dry_run:
        from hybridlm.commands.dry_run import describe

        print(describe(config))
        return 0
    if settings.workdir is None:
        raise UserError(f"{command} needs --workdir, the folder of the run (or --dry_run)")
    from hybridlm.commands.full_run import full_run
    from hybridlm.parallel import hosts

    where = hosts.address(settings.coordinator, settings.num_processes, settings.process_id)
    hosts.start(where, settings.cluster, os.environ)
    return full_run(config, settings.workdir)
