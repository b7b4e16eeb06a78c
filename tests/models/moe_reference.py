"""A mixture of experts in float64, written from the papers: loops over tokens and over experts."""

import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS = {
    "silu": lambda x: x / (1 + jnp.exp(-x)),
    "gelu": lambda x: x * jax.scipy.stats.norm.cdf(x),
    "relu2": lambda x: jnp.maximum(x, 0) ** 2,
}


def draw(rng: np.random.Generator) -> dict:
    """Settings of a mixture with any of its options."""

    def coin() -> bool:
        return bool(rng.random() < 0.5)

    groups = int(rng.choice([1, 1, 2, 4]))
    experts = groups * int(rng.integers(2, 5))
    top_groups = int(rng.integers(1, groups + 1))
    top_k = int(rng.integers(1, min(4, top_groups * experts // groups) + 1))
    choice = groups == 1 and coin()
    scores = str(rng.choice(["softmax", "sigmoid"] + ["softmax_chosen"] * choice))
    router = dict(
        scores=scores,
        normalize=coin(),
        normalize_eps=float(rng.choice([0, 1e-20, 1e-6])),
        scale=float(rng.choice([1.0, 2.5])),
        bias=coin(),
        choice_bias=scores != "softmax_chosen" and coin(),
        groups=groups,
        top_groups=top_groups,
        group_score=str(rng.choice(["top2", "max"])),
    )
    activation, gated, shared = str(rng.choice(list(ACTIVATIONS))), coin(), coin()
    oss = gated and coin()
    found = dict(
        kind="moe",
        experts=experts,
        top_k=top_k,
        hidden=int(rng.integers(3, 9)),
        activation=activation,
        gated=gated,
        bias=coin(),
        clamp=0.6 if oss else None,
        gate_slope=1.702 if oss and activation == "silu" else 1.0,
        up_offset=1.0 if oss else 0.0,
        weigh=str(rng.choice(["output", "input"])),
        router=router,
        shared_hidden=5 if shared else None,
        shared_gate=shared and coin(),
        latent=int(rng.integers(3, 6)) if coin() else None,
        balance_weight=float(rng.choice([0, 0.3])),
        z_weight=float(rng.choice([0, 0.2])),
    )
    router.update(input_norm=coin(), expert_scale=coin())
    return found


def scores_of(settings, params, x_ND):
    """(logits, scores) of a router's `params`."""
    if settings["input_norm"]:
        size = jnp.sqrt(jnp.mean(x_ND**2, axis=1, keepdims=True) + 1e-6)
        x_ND = x_ND / size * params["norm"]["scale"] / x_ND.shape[1] ** 0.5
    logits = x_ND @ params["kernel"]
    if settings["bias"]:
        logits = logits + params["bias"]
    if settings["scores"] == "sigmoid":
        return logits, 1 / (1 + jnp.exp(-logits))
    return logits, jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=1, keepdims=True)


def choose(config, params, x_ND, real_N) -> np.ndarray:
    """True where a token goes to an expert, bool (N, E): token by token, with sorted lists."""
    router = config["router"]
    scores = np.asarray(scores_of(router, params, x_ND)[1])
    by = scores + np.asarray(params["choice_bias"]) if router["choice_bias"] else scores
    chosen = np.zeros(scores.shape, bool)
    size = config["experts"] // router["groups"]
    for n in np.flatnonzero(real_N):
        groups = []
        for g in range(router["groups"]):
            best = sorted(by[n, g * size : (g + 1) * size], reverse=True)
            groups.append((sum(best[:2]) if router["group_score"] == "top2" else best[0], g))
        allowed = [g for _, g in sorted(groups, reverse=True)[: router["top_groups"]]]
        experts = [(by[n, e], e) for e in range(config["experts"]) if e // size in allowed]
        for _, e in sorted(experts, reverse=True)[: config["top_k"]]:
            chosen[n, e] = True
    return chosen


def feed(form, params, x_ND, e=None):
    """An expert's output: of the routed expert `e`, or of the shared one."""

    def linear(name, x):
        if e is None:
            return x @ params[name]["kernel"]
        y = x @ params[name][e]
        return y + params[f"{name}_bias"][e] if form["bias"] else y

    act = ACTIVATIONS[form["activation"]]
    if not form["gated"]:
        return linear("down", act(linear("up", x_ND)))
    gate, up = linear("gate", x_ND), linear("up", x_ND)
    if form["clamp"] is not None:
        gate = jnp.where(gate > form["clamp"], form["clamp"], gate)
        up = jnp.where(jnp.abs(up) > form["clamp"], jnp.sign(up) * form["clamp"], up)
    if e is not None:
        if form["gate_slope"] != 1:
            return linear("down", gate / (1 + jnp.exp(-form["gate_slope"] * gate)) * (up + 1))
        up = up + form["up_offset"]
    return linear("down", act(gate) * up)


def mixture(config, params, x_ND, chosen_NE, real_N):
    """(output (N, D), loss) of a mixture that sends the tokens where `choose` says."""
    router = config["router"]
    logits, scores = scores_of(router, params["router"], x_ND)
    weights = jnp.where(chosen_NE, scores, 0)
    if router["scores"] == "softmax_chosen":
        weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-300)
    if router["normalize"]:
        weights = weights / (
            weights.sum(1, keepdims=True) + router["normalize_eps"] + ~real_N[:, None]
        )
    weights = weights * router["scale"]
    if router["expert_scale"]:
        weights = weights * params["router"]["expert_scale"]
    z = x_ND @ params["into_latent"]["kernel"] if config["latent"] else x_ND
    y = 0
    for e in range(config["experts"]):
        w, here = weights[:, e, None], chosen_NE[:, e, None]
        if config["weigh"] == "input":
            y = y + jnp.where(here, feed(config, params["experts"], w * z, e), 0)
        else:
            y = y + jnp.where(here, w * feed(config, params["experts"], z, e), 0)
    if config["latent"]:
        y = y @ params["from_latent"]["kernel"]
    if config["shared_hidden"]:
        shared = feed(config, params["shared"], x_ND)
        if config["shared_gate"]:
            shared = shared / (1 + jnp.exp(-x_ND @ params["shared_gate"]["kernel"]))
        y = y + shared
    tokens, loss = real_N.sum(), 0.0
    if config["balance_weight"]:
        shares = scores / scores.sum(1, keepdims=True)
        part = chosen_NE.sum(0) / (tokens * config["top_k"])
        mean = jnp.where(real_N[:, None], shares, 0).sum(0) / tokens
        loss += config["balance_weight"] * config["experts"] * (part * mean).sum()
    if config["z_weight"]:
        squares = jnp.log(jnp.exp(logits).sum(1)) ** 2
        loss += config["z_weight"] * jnp.where(real_N, squares, 0).sum() / tokens
    return y, loss
