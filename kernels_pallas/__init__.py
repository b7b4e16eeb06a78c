"""Sequence-mixing operations for JAX, one folder per op. Imports nothing of hybridlm.

Every op is a pure function with one signature for all backends: `reference.py` (the oracle, token by
token, float64-capable), `chunked.py` (fast XLA, any device) and, for some ops, Pallas kernels (`tpu.py`,
`hopper.py`). `dispatch.py` chooses the backend, fail-closed. `forms.py` has the signature of the
backends of recurrent ops, `testing` the laws that every op obeys.

Array names carry their axes, `q_BTHK`; `dimensions.py` lists the letters.

In all ops `segment_ids` is int32 (B, T): 0 is padding, and a change of id between neighbours is a
document boundary (two separate runs of the same id are two documents). `segment_ids=None` means that
all tokens belong to document 1. States are NamedTuples that carry the segment ids of the tokens they
come from, so that a sequence may be split anywhere, also on a boundary.
"""
