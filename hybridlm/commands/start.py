"""Starts a run on this host, or prints what it would do."""

import os

from hybridlm.commands.shared import StartSettings
from hybridlm.config import Config
from hybridlm.errors import UserError
from hybridlm.progress import doing


def start(config: Config, settings: StartSettings, command: str) -> int:
    """Runs `config` to its end, or prints what it would do; returns the exit code.

    Raises:
      UserError: if there is no workdir, and as `hybridlm.train.loop.train` does.
    """
    if settings.dry_run:
        from hybridlm.commands.dry_run import describe

        with doing("counting what the run needs"):
            text = describe(config, settings.show_config)
        print(text)
        return 0
    if settings.show_config:
        raise UserError("--show_config goes with --dry_run, and only with it")
    if settings.workdir is None:
        raise UserError(f"{command} needs --workdir, the folder of the run (or --dry_run)")
    from hybridlm.commands.full_run import full_run
    from hybridlm.parallel import hosts
    from hybridlm.train.ready import check_ready, cpu_devices

    where = hosts.address(settings.coordinator, settings.num_processes, settings.process_id)
    launched = settings.cluster if settings.cluster != "auto" else hosts.detect_cluster(os.environ)
    alone = where is None and launched in (None, "none")
    with doing("checking what the run needs"):
        check_ready(config, devices=cpu_devices() if alone else None)
    hosts.start(where, settings.cluster, os.environ)
    return full_run(config, settings.workdir)
