"""Law 8: NaN and infinity of one document, of padding or of a foreign state reach nobody else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.testing.subject import (
    Subject,
    Tree,
    assert_close,
    draw_cotangents,
    floats,
    like,
    runner,
)

VALUES = (np.nan, np.inf, -np.inf)


def check_contained(
    subject: Subject,
    rng,
    batch: int,
    time: int,
    cut: int,
    segment_ids,
    dtype=jnp.float64,
    tolerance: float = 1e-10,
    impl: str = "chunked",
    with_state: bool = True,
) -> None:
    """Law 8: in each row one document, or one run of padding, gets NaN or infinity in its inputs, and so
    does the initial state where it belongs to another document. Outputs and gradients of all other
    tokens do not change, with cotangents of NaN wherever outputs are not finite, as a loss has them.
    The tokens are passed in two calls, split at `cut`, so that states carry what is planted too.

    Where all inputs of a token are NaN, an output of it is NaN: the NaN is not hidden.
    """

    def in_two_calls(inputs, params, segment_ids, state, impl):
        outputs = []
        for piece in (slice(None, cut), slice(cut, None)):
            part = jax.tree.map(lambda x, s=piece: x[:, s], inputs)
            out, state = subject.apply(part, params, segment_ids[:, piece], state, impl)
            outputs.append(out)
        return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *outputs), state

    inputs, params = subject.inputs(rng, batch, time, dtype), subject.params(rng, dtype)
    state = subject.state(rng, batch, dtype) if with_state and subject.state else None
    split = dataclasses.replace(subject, apply=in_two_calls)
    cotangents = draw_cotangents(rng, split, impl, inputs, params, segment_ids, state)
    cotangents = cotangents[0], jax.tree.map(jnp.zeros_like, cotangents[1])
    run = runner(split, impl)
    was = run(inputs, params, segment_ids, state, cotangents)

    plan = Planted(rng, np.asarray(segment_ids))
    planted = plan.inputs(inputs), params, segment_ids, plan.state(state)
    found = run(*planted, cotangents)
    found = run(*planted, (plan.cotangents(cotangents[0], found["outputs"]), cotangents[1]))
    check_same_elsewhere(subject, plan, found, was, tolerance)


class Planted:
    """One planted value per row, in one token of one document or run of padding.

    Attributes:
      victim_BT: bool, the tokens of the document that gets the value.
      token_BT: bool, the token that gets it.
      value: NaN, infinity or minus infinity.
      everywhere: True plants it in all inputs; otherwise in one, drawn at random.
    """

    def __init__(self, rng: np.random.Generator, ids_BT: np.ndarray):
        self._rng = rng
        starts_BT = np.diff(ids_BT, axis=1, prepend=ids_BT[:, :1] - 1) != 0
        number_BT = np.cumsum(starts_BT, axis=1)
        self.padding_BT = ids_BT == 0
        # In one draw of three all victims are padding, where that is possible.
        only_padding = rng.integers(0, 3) == 0 and self.padding_BT.any(axis=1).all()
        self.victim_BT = np.zeros(ids_BT.shape, bool)
        for row, number_T in enumerate(number_BT):
            numbers = np.unique(number_T[self.padding_BT[row]] if only_padding else number_T)
            self.victim_BT[row] = number_T == rng.choice(numbers)
        self.token_BT = np.zeros_like(self.victim_BT)
        for token_T, victim_T in zip(self.token_BT, self.victim_BT):
            token_T[rng.choice(np.flatnonzero(victim_T))] = True
        self.foreign_B = ids_BT[:, 0] != 1  # states belong to document 1
        self.value = VALUES[rng.integers(0, len(VALUES))]
        self.everywhere = bool(rng.integers(0, 2))

    def inputs(self, inputs: dict) -> dict:
        """The inputs with the value at the chosen tokens, in one feature or in all."""
        names = list(inputs) if self.everywhere else [self._rng.choice(list(inputs))]
        planted = dict(inputs)
        for name in names:
            x = np.array(inputs[name])
            if x.shape[:2] != self.token_BT.shape:
                continue  # no time axis
            for b, t in zip(*np.nonzero(self.token_BT)):
                entries = x[b, t].reshape(-1)
                one = self._rng.integers(0, entries.size)
                entries[slice(None) if self.everywhere else one] = self.value
                x[b, t] = entries.reshape(x[b, t].shape)
            planted[name] = jnp.asarray(x)
        return planted

    def state(self, state: Tree) -> Tree:
        """The state with the value in the rows whose first token continues another document."""
        if state is None:
            return None
        found, rebuild = floats(state)
        return rebuild([jnp.where(_rows(self.foreign_B, x), self.value, x) for x in found])

    def cotangents(self, cotangents: Tree, outputs: Tree) -> Tree:
        """Cotangents with NaN at the victim from its token on, as other layers make them, and where
        outputs are not finite, as a loss has them."""
        after_BT = self.victim_BT & (np.cumsum(self.token_BT, axis=1) > 0)

        def one(c, x):
            return jnp.where(jnp.isfinite(x) & ~like(after_BT, x), c, jnp.nan)

        return jax.tree.map(one, cotangents, outputs)


def check_same_elsewhere(
    subject: Subject, plan: Planted, found: dict, was: dict, tolerance: float
) -> None:
    """Outputs and inputs' gradients are equal outside the victims; a victim of NaN is NaN itself.

    Where all victims are padding, gradients of an op's parameters are equal too.
    """
    others_BT = ~plan.victim_BT | plan.padding_BT
    # What a mixer computes token by token spoils the gradients of padding, if cotangents do.
    with_gradient_BT = others_BT if subject.op else others_BT & ~plan.victim_BT
    name = subject.name

    def only(tree: Tree, mask_BT) -> Tree:
        return jax.tree.map(lambda x: jnp.where(like(mask_BT, x), x, 0), tree)

    def others(result: dict) -> dict:
        inputs, params, _ = result["gradients"]
        by_token = {n: g for n, g in inputs.items() if g.shape[:2] == others_BT.shape}
        kept = dict(
            outputs=only(result["outputs"], others_BT), gradients=only(by_token, with_gradient_BT)
        )
        if subject.op and not (plan.victim_BT & ~plan.padding_BT).any():
            kept["parameters"] = params
        return kept

    law = f"{name}: {plan.value} in another document changes a result"
    assert_close(law, others(found), others(was), tolerance)
    if np.isnan(plan.value) and plan.everywhere:
        hidden_BT = plan.token_BT & ~plan.padding_BT
        for leaf in jax.tree.leaves(found["outputs"]):
            finite_BT = np.isfinite(np.asarray(leaf)).reshape(*hidden_BT.shape, -1).all(axis=-1)
            hidden_BT = hidden_BT & finite_BT
        if np.any(hidden_BT):
            raise AssertionError(f"{name}: a token of NaN has finite outputs")


def _rows(mask_B, x):
    return mask_B.reshape(mask_B.shape + (1,) * (x.ndim - 1))
