"""Thin adapters that start the runs of a sweep: here, on SLURM, on GKE by xpk, by SkyPilot.

Each renders words and an environment for another program; none of them knows what a run is. They
stand above `hybridlm`, which imports nothing of them: only its command `sweep` asks for them.
"""
