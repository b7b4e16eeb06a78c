"""`hybridlm compile`."""

from hybridlm.aot.settings import CompileSettings
from hybridlm.commands.command import Command, Overrides


def _run(settings: CompileSettings, overrides: Overrides) -> int:
    from hybridlm import config as configs
    from hybridlm.aot.run import run

    config = configs.load(settings.config, overrides)
    return run(config, settings.topology, settings.slices, settings.out, settings.largest)


COMPILE = Command(
    "compile",
    "compile the training step for TPUs or GPUs that are not attached, and report what it needs",
    lambda: (CompileSettings,),
    _run,
    takes_overrides=True,
    notes=lambda: "Any setting: --config.a.b=value. Exit code 1: the step does not fit in memory.",
)
