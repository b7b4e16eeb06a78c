"""The letters of array names: `q_BTHK` has the axes B, T, H and K.

In all ops:

    B  batch rows
    T  tokens of the call
    S  tokens that keys or inputs come from: those of the state, then the T of the call
    H  heads of queries (attention, gated slots) or of values (gated linear, delta rule)
    G  heads that are shared: of keys and values (attention, gated slots) or of queries and keys
    R  heads that share one of the G: H = G * R
    K  size of a query or key
    V  size of a value
    D  channels of an elementwise op
    N  chunks or blocks of tokens
    C  tokens of a chunk or block

A state S of gated linear attention or the delta rule is a matrix (K, V), named `s_BHKV`. The digit
1 is an axis of length 1. TPU kernels fold axes: there R counts the value heads of a grid step,
N the steps that all heads take, and Hopper walks count B * H rows with R.

In one op:

    attention          M  rows of a query block: R * C
    block_sparse       E  B * G           J  chosen blocks of a query   P  (query, block) pairs
                       L  tiles of a step X  steps, or updated blocks   M  pairs of a tile, or tokens
    causal_conv        W  taps of the filter                            P  padded tokens
    gated_slots        M  slots           Z  K + V, keys and values     U  groups of chunks
                       h  tokens of a half, L of a leaf                 J  pairs of halves, or leaves
                       x  rows of a half or leaf: tokens * R
    gated_linear       P  parts of a chunk
    grouped_matmul     N  rows            E  groups              D, F  inputs, outputs
    indexed            I  heads of the indexer   J  size of their keys  Q  queries
    linear_recurrence  L  tokens of a block
    selective_scan     N  entries of a channel's state                  L  tokens of a block
    context            F  K + V           P  shards
"""
