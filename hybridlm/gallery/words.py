"""A model's mixers, feed-forwards, norms and positions in words."""

from hybridlm.gallery.facts import Facts
from hybridlm.gallery.numbers import count, kib
from hybridlm.gallery.sheet import LayerKind, Sheet
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.absent import NoFeedForwardConfig
from hybridlm.models.feedforward.beside import BesideConfig
from hybridlm.models.feedforward.dense import DenseConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers.absent import NoMixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.base import MixerConfig
from hybridlm.models.mixers.delta import DeltaConfig
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.lightning import LightningConfig
from hybridlm.models.mixers.mamba1 import Mamba1Config
from hybridlm.models.mixers.mamba2 import Mamba2Config
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.mixers.mlstm import MLSTMConfig
from hybridlm.models.mixers.moba import MoBAConfig
from hybridlm.models.mixers.parallel import ParallelConfig
from hybridlm.models.mixers.rglru import RGLRUConfig
from hybridlm.models.mixers.short_conv import ShortConvConfig
from hybridlm.models.positional import RopeConfig

BLOCKS = {
    "prenorm": "before each half of a layer",
    "postnorm": "after each half of a layer",
    "sandwich": "before and after each half of a layer",
    "scaled_sandwich": "before and after each half of a layer",
    "parallel": "one, before both halves, which run in parallel",
    "normed": "before each half of a layer, which is added to the normed stream",
}
NORMS = {
    "rmsnorm": "RMSNorm",
    "rmsnorm_unit_offset": "RMSNorm with an offset of 1",
    "layernorm": "LayerNorm",
    "layernorm_no_bias": "LayerNorm without bias",
}
QK_NORMS = {
    True: "of each head",
    "unit_offset": "of each head",
    "l2": "of each head, without a scale,",
    "whole": "over all heads",
}
ACTIVATIONS = {"silu": "SwiGLU", "gelu": "GeGLU", "gelu_tanh": "GeGLU"}


def attention_kind(mixer: MixerConfig) -> str | None:
    """ "MHA", "GQA", "MQA" or "MLA"; None for a mixer without softmax attention to tokens."""
    if isinstance(mixer, MLAConfig):
        return "MLA"
    if not isinstance(mixer, AttentionConfig):
        return None
    if mixer.kv_heads == mixer.heads:
        return "MHA"
    return "MQA" if mixer.kv_heads == 1 else "GQA"


def short(mixer: MixerConfig) -> str:
    """A few words for tables and drawings: "GQA, window 1,024", "Gated DeltaNet"."""
    if isinstance(mixer, ParallelConfig):
        return " beside ".join(short(branch) for branch in mixer.branches.values())
    if isinstance(mixer, NoMixerConfig):
        return "no mixer"
    if isinstance(mixer, MLAConfig):
        chosen = [f"{mixer.top_k:,} chosen tokens"] if isinstance(mixer, DSAConfig) else []
        if isinstance(mixer, DSAConfig) and mixer.pooling:
            chosen += [f"pools of {mixer.pool}"]
        if isinstance(mixer, DSAConfig) and mixer.index_in:
            chosen += ["shared indexer"]
        window = [_span(mixer)] if mixer.window else []
        position = [] if mixer.rope and mixer.qk_rope else ["NoPE"]
        return ", ".join(["MLA", *window, *chosen, *position])
    if isinstance(mixer, AttentionConfig):
        words = [attention_kind(mixer), _span(mixer), None if mixer.rope else "NoPE"]
        gates = "forget gates" if mixer.forget_gate else None
        shared = "shared keys" if mixer.kv_in else None
        return ", ".join(filter(None, [*words, gates, shared]))
    if isinstance(mixer, DeltaConfig):
        return mixer.name
    named = {
        Mamba1Config: "Mamba",
        Mamba2Config: "Mamba-2",
        LightningConfig: "Lightning attention",
        RGLRUConfig: "RG-LRU",
        ShortConvConfig: "short convolution",
        MLSTMConfig: "mLSTM",
        MoBAConfig: "MoBA",
    }
    return named.get(type(mixer), mixer.kind_name)


def long(mixer: MixerConfig, width: int) -> str:
    """Heads, sizes, positions and options of a mixer in a model of `width`."""
    if isinstance(mixer, ParallelConfig):
        return "; beside it ".join(long(branch, width) for branch in mixer.branches.values())
    if isinstance(mixer, AttentionConfig):
        return ", ".join(_attention(mixer, width))
    if isinstance(mixer, MLAConfig):
        queries = f", queries from {mixer.q_rank:,}" if mixer.q_rank else ""
        shared = f" + {mixer.qk_rope} shared" if mixer.qk_rope else ""
        position = positions(mixer.rope if mixer.qk_rope else None)
        indexer = _indexer(mixer) if isinstance(mixer, DSAConfig) else ""
        window = f", {_span(mixer)}" if mixer.window else ""
        return (
            f"MLA, {mixer.heads} heads, latent {mixer.kv_rank}{shared}{queries}, keys of"
            f" {mixer.qk_nope + mixer.qk_rope}, values of {mixer.value_dim}{window}, {position}{indexer}"
        )
    if isinstance(mixer, DeltaConfig):
        sizes = mixer.sizes(width)
        return (
            f"{mixer.name}, {sizes.heads} key heads of {sizes.key_size}, {sizes.value_heads} value"
            f" heads of {sizes.value_size}, convolution {mixer.conv_width}"
        )
    if isinstance(mixer, Mamba1Config):
        return (
            f"Mamba, {mixer.channels(width):,} channels, state {mixer.state_dim}, steps of rank"
            f" {mixer.rank(width)}, convolution {mixer.conv_width}"
        )
    if isinstance(mixer, Mamba2Config):
        return (
            f"Mamba-2, {mixer.head_count(width)} heads of {mixer.head_dim}, state"
            f" {mixer.state_dim}, {mixer.groups} {'group' if mixer.groups == 1 else 'groups'},"
            f" convolution {mixer.conv_width}"
        )
    if isinstance(mixer, LightningConfig):
        return f"Lightning attention, {mixer.heads} heads of {mixer.head_size(width)}"
    if isinstance(mixer, RGLRUConfig):
        return f"RG-LRU, {mixer.channels(width):,} channels, convolution {mixer.conv_width}"
    if isinstance(mixer, MoBAConfig):
        return (
            f"MoBA, {mixer.heads} query and {mixer.kv_heads} key/value heads of"
            f" {mixer.head_size(width)}, {mixer.top_k} blocks of {mixer.block} tokens,"
            f" {positions(mixer.rope)}"
        )
    if isinstance(mixer, MLSTMConfig):
        key, value = mixer.head_sizes(width)
        return f"mLSTM, {mixer.heads} heads, keys of {key}, values of {value}"
    if isinstance(mixer, ShortConvConfig):
        return f"short convolution, gated, {mixer.conv_width} taps"
    return short(mixer)


def _indexer(mixer: DSAConfig) -> str:
    chosen = f", {mixer.top_k:,} tokens chosen by "
    if mixer.index_in:
        chosen += "the indexer of a layer below"
    else:
        chosen += f"{mixer.index_heads} heads of {mixer.index_dim}"
    pools = f" in pools of {mixer.pool}" if mixer.pooling else ""
    given = ", indexer of layers above too" if mixer.index_out else ""
    return chosen + pools + given


def mixture(config: FeedForwardConfig) -> MoEConfig | None:
    """The experts of a feed-forward; None for one without."""
    if isinstance(config, BesideConfig):
        return config.moe
    return config if isinstance(config, MoEConfig) else None


def feedforward(config: FeedForwardConfig) -> str:
    """Kind and hidden size of a feed-forward."""
    if isinstance(config, NoFeedForwardConfig):
        return "no feed-forward"
    if isinstance(config, BesideConfig):
        return f"{feedforward(config.moe)}, beside {feedforward(config.dense)}"
    if isinstance(config, MoEConfig):
        shared = f", shared {config.shared_hidden:,}" if config.shared_hidden else ""
        latent = f" in a latent of {config.latent:,}" if config.latent else ""
        groups = (
            f", from {config.router.top_groups} of {config.router.groups} groups"
            if config.router.groups > 1
            else ""
        )
        return (
            f"{config.top_k} of {config.experts} experts{groups}, hidden {config.hidden:,}{latent}{shared},"
            f" {config.router.scores.partition('_')[0]} router{_clamp(config.clamp)}"
        )
    if isinstance(config, DenseConfig):
        name = {"relu2": "squared ReLU"}.get(config.activation, config.activation)
        if config.matrices == 3:
            name = ACTIVATIONS.get(config.activation, f"gated {config.activation}")
        return f"{name}, hidden {config.hidden:,}{_clamp(config.clamp)}"
    return config.mechanism


def _clamp(limit: float | None) -> str:
    return "" if limit is None else f", clamp {limit:g}"


def positions(rope: RopeConfig | None) -> str:
    """RoPE's settings in words, or "NoPE"."""
    if rope is None:
        return "NoPE"
    words = [f"RoPE {rope.theta:,.0f}"]
    if rope.fraction != 1:
        words.append(f"on {rope.fraction:.3g} of each head")
    if rope.kept:
        words.append(f"with the fastest {rope.kept.fraction:g} of its frequencies")
    elif rope.yarn:
        words.append(f"YaRN x{rope.yarn.factor:g}")
    elif rope.scaling:
        words.append(f"scaled x{rope.scaling.factor:g}")
    return " ".join(words)


def published(facts: Facts) -> str:
    """The published numbers of parameters and what they leave out."""

    def one(text: str, excluded: str) -> str:
        return text if excluded == "nothing" else f"{text} without {excluded}"

    if facts.total is None:
        return "no figure found"
    total = one(facts.total, facts.total_excludes)
    if facts.active is not None:
        total += f"; active {one(facts.active, facts.active_excludes)}"
    return f"{total}, cut off after the last digit" if facts.cut else total


def notes(facts: Facts) -> list[str]:
    """A sentence on each thing that the config lacks or that no publication was found for."""
    counted = {**(facts.left_out or {}), **(facts.outside or {})}
    cached = {**(facts.left_out_kv or {}), **(facts.left_out_cache or {})}
    return [
        *(f"Not in this config: {what}." for what in facts.unsupported),
        *(
            f"Counted in the parameters, not in the FLOPs: {what}, {count(number)}."
            for what, number in counted.items()
        ),
        *(
            f"In this config, not in the published model, and not counted: {what}, {count(number)}."
            for what, number in (facts.surplus or {}).items()
        ),
        *(f"Counted in the bytes: {what}, {kib(size)} a token." for what, size in cached.items()),
        *(f"Not confirmed by a publication: {what}." for what in facts.unconfirmed),
    ]


def decoder(sheet: Sheet) -> str:
    """Whether tokens go to experts, and what carries them: "sparse hybrid", "dense transformer"."""
    attends = {
        mixer.reach(2**20) is not None
        for mixer in _branches(sheet)
        if not isinstance(mixer, NoMixerConfig)
    }
    kind = "hybrid" if len(attends) > 1 else "transformer" if attends == {True} else "recurrent"
    experts = any(mixture(layer.feedforward) for layer in sheet.kinds)
    return f"{'sparse' if experts else 'dense'} {kind}"


def mix(sheet: Sheet) -> str:
    """The layers by mixer: "36 Gated DeltaNet + 12 GQA"; feed-forward layers of their own too."""
    counts: dict[str, int] = {}
    for kind in sheet.kinds:
        word = layer_word(kind) + beside(sheet, kind)
        counts[word] = counts.get(word, 0) + kind.count
    return " + ".join(f"{count} {word}" for word, count in counts.items())


def attention_kinds(sheet: Sheet) -> str:
    """The kinds of attention that the layers have: "MHA", "GQA and MLA", "none"."""
    found = {attention_kind(mixer): None for mixer in _branches(sheet)}
    found.pop(None, None)
    return " and ".join(found) or "none"


def all_positions(sheet: Sheet) -> str:
    """The positions of the layers with attention: "RoPE 10,000 and NoPE"."""
    ropes = {
        positions(mixer.rope if getattr(mixer, "qk_rope", 1) else None): None
        for mixer in _branches(sheet)
        if attention_kind(mixer) is not None
    }
    return " and ".join(ropes) or "none"


def feedforwards(sheet: Sheet) -> str:
    """The feed-forwards of the layers, each once."""
    found = {feedforward(kind.feedforward): None for kind in sheet.kinds}
    if len(found) > 1:
        found.pop("no feed-forward", None)
    return "; ".join(found)


def layer_word(kind: LayerKind) -> str:
    """A layer's mixer in short, or its feed-forward if it has no mixer."""
    if not isinstance(kind.mixer, NoMixerConfig):
        return short(kind.mixer)
    return "experts" if mixture(kind.feedforward) else "feed-forward"


def beside(sheet: Sheet, kind: LayerKind) -> str:
    """ ", beside ..." for a layer that has more than its config; "" for others."""
    found = (sheet.facts.beside or {}).get(kind.label.partition("+")[0])
    return f", beside {found}" if found else ""


def norms(sheet: Sheet) -> str:
    """The kind of norm, where it sits, and norms of queries and keys."""
    config = sheet.config
    places: dict[str, list[str]] = {}
    for name in config.mixers:
        block = config.blocks.get(name)
        places.setdefault(BLOCKS[block.norms if block else config.block], []).append(name)
    if len(places) == 1:
        words = f"{NORMS[config.norm]}, {next(iter(places))}"
    else:
        each = (f"{place} in {' and '.join(names)}" for place, names in places.items())
        words = f"{NORMS[config.norm]}, {', '.join(each)}"
    normed = {m.qk_norm: None for m in attentions(sheet) if m.qk_norm}
    for norm in normed:
        words += f"; queries and keys {QK_NORMS[norm]} too"
    return words


def stream(sheet: Sheet) -> str:
    """The residual stream: how many there are, and what layers add beside their halves."""
    streams, inputs = sheet.config.streams, sheet.config.per_layer
    words = "one"
    if streams:
        words = f"{streams.count}, mixed anew for each token before each half (hyper-connections)"
    if inputs:
        words += f"; each layer adds a vector of {inputs.size} of the token (per-layer inputs)"
    return words


def sharing(sheet: Sheet) -> str:
    """How many layers attend to keys and values of a layer below, or use its indexer; "none"."""
    found: dict[str, int] = {}
    for kind in sheet.kinds:
        if kind.mixer.reads_cache:
            what = "the indexer" if isinstance(kind.mixer, DSAConfig) else "keys and values"
            found[what] = found.get(what, 0) + kind.count
    return "; ".join(f"{n} use {what} of layers below" for what, n in found.items()) or "none"


def attentions(sheet: Sheet) -> list[AttentionConfig]:
    """The settings of the mixers, or of their branches, that are softmax attention."""
    return [mixer for mixer in _branches(sheet) if isinstance(mixer, AttentionConfig)]


def _branches(sheet: Sheet) -> list[MixerConfig]:
    """The mixers of all kinds of layers; of a mixer made of mixers its branches."""
    found = []
    for kind in sheet.kinds:
        made = isinstance(kind.mixer, ParallelConfig)
        found += kind.mixer.branches.values() if made else [kind.mixer]
    return found


def _span(mixer: AttentionConfig | MLAConfig) -> str | None:
    if mixer.window:
        return f"window {mixer.window:,}"
    if isinstance(mixer, MLAConfig):
        return None
    return f"chunk {mixer.chunk:,}" if mixer.chunk else None


def _attention(mixer: AttentionConfig, width: int) -> list[str]:
    words = [attention_kind(mixer)]
    if mixer.kv_heads == mixer.heads:
        words.append(f"{mixer.heads} heads of {mixer.head_size(width)}")
    else:
        words.append(
            f"{mixer.heads} query and {mixer.kv_heads} key/value heads of {mixer.head_size(width)}"
        )
    options = {
        f"values of {mixer.value_dim or 0}": mixer.value_dim,
        "norm of queries and keys": mixer.qk_norm,
        "values from the keys' projection": mixer.values == "keys",
        "output gate": mixer.output_gate is True,
        "output gate a head": mixer.output_gate == "head",
        "forget gates": mixer.forget_gate,
        "biases": mixer.bias,
        "sinks": mixer.sinks,
        f"soft cap {mixer.soft_cap or 0:g}": mixer.soft_cap,
        "logits that grow with the position": mixer.temperature,
        "keys and values of a layer below": mixer.kv_in,
        "keys and values of layers above too": mixer.kv_out,
    }
    return [
        *words,
        _span(mixer) or "full",
        positions(mixer.rope),
        *(word for word, wanted in options.items() if wanted),
    ]
