"""The dimension letters that end the names of arrays in `hybridlm.models`.

`q_BTHK` has the shape (B, T, H, K), `past_BT1` a last dimension of 1. The letters of operations'
arguments are those of `kernels_pallas.dimensions`; this legend has these and the models' own.

    B  sequences of a batch
    T  tokens of a sequence
    D  width of the residual stream
    V  size of a value head; of logits and the output head, the vocabulary

Mixers:

    H  query heads, or the heads of a recurrence
    G  key/value heads; of Mamba-2, groups
    K  size of a query or key head; experts of a token
    I  inner width: all heads of a mixer side by side, or the channels of RG-LRU's recurrence; heads
       of an indexer
    F  frequencies of RoPE; size of an expert's hidden layer
    S  capacity of a token cache, in tokens
    M  memory slots of a head
    N  blocks of MoBA; slices of the loss; shards of a mesh; groups of experts
    W  taps of a convolution, as in `kernels_pallas.dimensions`
    C  tokens computed at once: a slice of the loss, or a window of `LastTokens`; experts of a group

Multi-head latent attention:

    L  size of the latent; in the cache, the shared key part is appended to it
    R  size of the key part that all heads share and RoPE rotates
    U  size of the key part that each head makes from the latent, unrotated
    E  what each head makes from the latent: U of its key, then V of its value; experts

DeepSeek's sparse attention:

    J  size of an indexer's queries and keys

Mixtures of experts:

    X  rows that experts read: a token once for each of its experts, sorted by expert

Probes:

    Q  query tokens that are measured
    P  weights of one head, flattened
"""
