"""Sequence-mixing operations for JAX: one folder per op, nothing of hybridlm imported.

Every op is a pure function with one signature over several backends: `reference.py`
(the plain oracle, float64-capable), `chunked.py` (fast XLA, any device) and, where they
exist, Pallas kernels chosen fail-closed by `dispatch.py`. `testing.py` holds the laws
every op obeys.

Array names carry their dimensions (`q_BTHK`):

    B  batch            T  time (queries)     S  keys: time of a cache or prefix plus T
    H  query heads      G  key/value heads    R  query heads per key/value head, H = G * R
    K  query/key size   V  value size         D  channels        W  window or filter width
    N  chunks           C  tokens per chunk

Uniform over all ops: `segment_ids` is int32 (B, T); 0 is padding and a change of id
between neighbours is a document boundary (two runs of the same id apart from each other
are two documents). `segment_ids=None` means every token belongs to document 1. States are
NamedTuples that carry the segment ids of the tokens they come from, so that a sequence
split at any place, also exactly on a boundary, equals the whole.
"""
