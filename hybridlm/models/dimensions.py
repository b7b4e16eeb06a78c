"""The letters that names of arrays in `hybridlm.models` end in, one a dimension.

`q_BTHK` has the shape (B, T, H, K), `lost_BT1` a last dimension of 1. The letters of operations'
arguments are those of `kernels_pallas.dimensions`; these are theirs and the models' own.

    B  sequences of a batch
    T  tokens of a sequence
    D  width of the residual stream
    V  size of a value head; of logits and the output head, the vocabulary

Mixers:

    H  query heads, or the heads of a recurrence
    G  key/value heads; of Mamba-2, groups
    K  size of a query or key head
    I  inner width: all heads of a mixer side by side, or the channels of RG-LRU's recurrence
    F  frequencies of RoPE
    S  capacity of a token cache: its entries, one a token
    M  memory slots of a head
    N  blocks of MoBA; slices of the loss; shards of a mesh
    C  tokens computed at once: a slice of the loss, or a window of `LastTokens`

Multi-head latent attention:

    L  size of the latent; in the cache, the shared key part is appended to it
    R  size of the key part that all heads share and RoPE rotates
    U  size of the key part that each head makes from the latent, unrotated
    E  what each head makes from the latent: U of its key, then V of its value

Probes:

    Q  query tokens that are looked at
    P  weights of one head, in a row
"""
