"""The variants of attention that the page of the gallery explains, each with a layer that has it."""

from typing import NamedTuple


class Variant(NamedTuple):
    """One variant.

    Attributes:
      slug: of its drawing's file.
      title: its name.
      recipe: of a model that has it, relative to `configs`.
      layers: the mixers that are drawn, by their names in that recipe.
      equation: LaTeX.
      text: what it is, and what it costs.
    """

    slug: str
    title: str
    recipe: str
    layers: tuple[str, ...]
    equation: str
    text: str


SOFTMAX = (
    r"o_t^h = \sum_{s \le t} a_{ts}^h v_s^{%s},\quad"
    r" a_t^h = \mathrm{softmax}_s\!\left(\frac{q_t^h \cdot k_s^{%s}}{\sqrt d}\right)"
)

VARIANTS = (
    Variant(
        "mha",
        "Multi-head attention (MHA)",
        "gallery/olmo_3_7b.py",
        ("full",),
        SOFTMAX % ("h", "h"),
        "Every query head has keys and values of its own. A cache holds them of all tokens, for each"
        " head.",
    ),
    Variant(
        "gqa",
        "Grouped-query attention (GQA)",
        "gallery/llama_3_8b.py",
        ("full",),
        SOFTMAX % (r"\lceil h/g \rceil", r"\lceil h/g \rceil"),
        "Groups of g query heads share one key and value head (arXiv 2305.13245), so a cache is g"
        " times smaller than with MHA. FLOPs stay the same.",
    ),
    Variant(
        "mqa",
        "Multi-query attention (MQA)",
        "gallery/recurrentgemma_2b.py",
        ("local",),
        SOFTMAX % ("", ""),
        "All query heads share one key and value head (arXiv 1911.02150). RecurrentGemma has it in"
        " layers with a window.",
    ),
    Variant(
        "mla",
        "Multi-head latent attention (MLA)",
        "gallery/deepseek_v3.py",
        ("mla",),
        r"c_s = \mathrm{norm}(W_c x_s),\quad k_s^h = [W_k^h c_s;\ \mathrm{rope}(W_r x_s)],\quad"
        r" v_s^h = W_v^h c_s",
        "A cache holds a latent of each token, and a key part that all heads share (arXiv 2405.04434);"
        " keys and values of each head are projections of the latent. In decoding the projections"
        " move to queries and outputs, so each head attends to the latents themselves: fewer bytes,"
        " more FLOPs.",
    ),
    Variant(
        "windowed",
        "Windowed and chunked attention",
        "gallery/gemma_3_27b.py",
        ("local",),
        r"o_t = \sum_{t-W < s \le t} a_{ts} v_s",
        "A query sees the last W keys, its own included, so a cache holds W tokens however long the"
        " sequence is. Llama 4's chunks instead let a query see the keys of its own chunk of the"
        " positions.",
    ),
    Variant(
        "sparse",
        "Sparse attention",
        "gallery/deepseek_v3_2.py",
        ("dsa",),
        r"o_t = \sum_{s \in S_t} a_{ts} v_s,\quad S_t = \mathrm{top}_{k,\, s \le t}"
        r" \sum_i w_{ti}\, \mathrm{relu}(q_{ti}^I \cdot k_s^I)",
        "A query chooses what it attends to. In DeepSeek's sparse attention (arXiv 2512.02556) an"
        " indexer of small heads scores all earlier tokens, and latent attention sees the best k of"
        " them. A cache holds all tokens, because any of them may be chosen, and the indexer's keys"
        " besides.",
    ),
    Variant(
        "blocks",
        "Block-sparse attention",
        "mixers/moba.py",
        ("mixer",),
        r"o_t = \sum_{s \in S_t,\, s \le t} a_{ts} v_s,\quad"
        r" S_t = \text{own block} \cup \mathrm{top}_{k-1}\!\left(q_t \cdot \bar k_n\right)",
        "In MoBA (arXiv 2502.13189) a query chooses blocks of tokens by the mean of their keys, without"
        " parameters of its own for that.",
    ),
    Variant(
        "linear",
        "Linear attention and other recurrences",
        "gallery/kimi_linear_48b_a3b.py",
        ("kda",),
        r"S'_t = \mathrm{Diag}(a_t)\, S_{t-1},\quad S_t = S'_t + b_t k_t (v_t - S_t'^{\top} k_t)^{\top},"
        r"\quad o_t = S_t^{\top} q_t",
        "A state of fixed size takes the place of keys and values. Kimi Delta Attention forgets by a"
        " decay a for each channel of a key and corrects what the state holds for a key (the delta"
        " rule); Gated DeltaNet has one decay a head; Mamba-2 and Lightning attention add k v"
        " without a correction. A cache does not grow, and a token costs the same at every position.",
    ),
    Variant(
        "across",
        "Hybrid across layers",
        "gallery/qwen3_next_80b_a3b.py",
        ("gdn", "full"),
        r"x_{l+1} = x_l + f_l(\mathrm{norm}(x_l)),\quad f_l \in \{\text{recurrence},\ \text{attention}\}",
        "Most layers are cheap, with a state or a window, and a few attend to everything; these"
        " make up the cache of long sequences.",
    ),
    Variant(
        "within",
        "Hybrid within a layer",
        "gallery/falcon_h1_7b.py",
        ("hybrid",),
        r"y = m_1 f_{\text{attention}}(x) + m_2 f_{\text{SSM}}(x)",
        "Attention and a recurrence read the same input, and their outputs are added (Falcon-H1, arXiv"
        " 2507.22448) or averaged after a norm each (Hymba, arXiv 2411.13676). Native Hybrid"
        " Attention (arXiv 2510.07019) puts slots and a window of keys under one softmax. Every"
        " layer pays for both.",
    ),
)
