"""A short visit to a machine with a Hopper GPU: measures what it can, whatever breaks.

The parent (`__main__.py`, `plan.py`, `runner.py`) needs Python's standard library alone. Every item of the
plan runs in a process of its own (`worker.py`) with a time limit, and its results are in a file of JSON
lines as they come. `benchmarks/README.md` says how to run it.
"""
