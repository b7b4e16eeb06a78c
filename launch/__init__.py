"""Launchers, which start the runs of a sweep: on this machine, on SLURM, on GKE (xpk), by SkyPilot.

Each launcher only renders a command and an environment for another program. `hybridlm` does not
depend on this package; only its command `sweep` imports it.
"""
