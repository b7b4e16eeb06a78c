"""The laws for interpreted kernels, all with one compiled program per kernel.

`testing.LAWS` compiles a program for every length, and an interpreted kernel takes seconds to compile.
Here a document by itself is a row whose other tokens are padding, pieces have equal lengths, and
expected values come from the reference in float64.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import dispatch, testing
from kernels_pallas.testing import assert_close, contained


def interpreted(subject: testing.Subject, interpret=True, platform="tpu") -> testing.Subject:
    """The subject with the interpreted kernels of `platform`, wherever it is traced."""

    def apply(*arguments):
        with dispatch.kernels_for(platform, interpret):
            return subject.apply(*arguments)

    return dataclasses.replace(subject, apply=apply)


def races_found() -> bool:
    """Whether the last kernel run with `pltpu.InterpretParams(detect_races=True)` had a race."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    return interpret_pallas_call.races.races_found


class Held:
    """A subject with `time` tokens and `batch` rows, and the laws as methods.

    Arguments:
      precision: of matrix products, as `jax_default_matmul_precision`.
      dtype: of inputs and outputs.
      interpret: True, or `pltpu.InterpretParams`; `plgpu.InterpretGPUParams` for platform "gpu".
    """

    def __init__(
        self,
        subject,
        rng,
        batch=2,
        time=70,
        precision="highest",
        dtype=jnp.float32,
        interpret=True,
        platform="tpu",
    ):
        self.subject, self.rng, self.batch, self.time = subject, rng, batch, time
        self.dtype, self.precision = dtype, precision
        # Interpreted kernels take seconds to compile and little time to run.
        quickly = dict(compiler_options=dict(xla_backend_optimization_level=0))
        kernels = testing.runner(interpreted(subject, interpret, platform), "pallas")
        reference = testing.runner(subject, "reference")
        self._run = jax.jit(lambda *arguments: kernels(*arguments), **quickly)
        self._reference = jax.jit(lambda *arguments: reference(*arguments), **quickly)

    def run(self, *arguments):
        with jax.default_matmul_precision(self.precision):
            return self._run(*arguments)

    def draw(self, ids=None, state_id=1):
        """(inputs, params, ids, state, cotangents); a state id of 0 is an empty state."""
        rng, subject = self.rng, self.subject
        inputs = subject.inputs(rng, self.batch, self.time, self.dtype)
        params = subject.params(rng, self.dtype)
        if ids is None:
            ids = testing.draw_segment_ids(rng, self.batch, self.time)
        state = subject.state(rng, self.batch, jnp.float32)
        state = state._replace(segment_ids_B=jnp.full((self.batch,), state_id, jnp.int32))
        shapes = inputs, params, ids, state
        cotangents = testing.draw_cotangents(rng, subject, "reference", *shapes)
        return *shapes, cotangents

    def reference(self, *arguments):
        """The reference form in float64 on the same inputs."""
        with jax.enable_x64(True):
            arguments = jax.tree.map(_float64, arguments)
            return self._reference(*arguments)

    def check_values(self, tolerance=1e-5):
        """Law 1: outputs, final state and gradients equal the float64 reference's."""
        arguments = self.draw()
        got, want = self.run(*arguments), self.reference(*arguments)
        assert_close(f"{self.subject.name}: pallas = reference", got, want, tolerance)

    def check_no_gradient(self):
        """Outputs and final state are the same without gradients."""
        *arguments, cotangents = self.draw()
        got, want = self.run(*arguments), self.run(*arguments, cotangents)
        del want["gradients"]
        assert_close(f"{self.subject.name}: without a gradient", got, want, 1e-6)

    def check_packed(self, tolerance=1e-5):
        """Law 2: a document's outputs and gradients are the same with and without the others."""
        cuts = np.sort(self.rng.choice(np.arange(1, self.time), 3, replace=False))
        cuts = [0, *cuts, min(cuts[-1] + 1, self.time), self.time]
        ids = np.zeros((self.batch, self.time), np.int32)
        spans = [slice(*span) for span in zip(cuts[:-1], cuts[1:]) if span[0] < span[1]]
        for number, span in enumerate(spans):
            ids[:, span] = 1 + number % 2
        inputs, params, ids, state, (cotangents, final) = self.draw(jnp.asarray(ids), 0)
        final = jax.tree.map(jnp.zeros_like, final)
        packed = self.run(inputs, params, ids, state, (cotangents, final))
        for span in spans:
            own = jnp.zeros_like(ids).at[:, span].set(ids[:, span])
            alone = self.run(inputs, params, own, state, (cotangents, final))
            got, want = (
                jax.tree.map(lambda x, s=span: x[:, s], (r["outputs"], r["gradients"][0]))
                for r in (packed, alone)
            )
            assert_close(f"{self.subject.name}: packed = separate, {span}", got, want, tolerance)

    def check_split(self, tolerance=1e-5):
        """Law 3: two calls with a carried state equal one call, in values and gradients."""
        first, second = self.draw(state_id=1), self.draw()
        params, state = first[1], first[3]
        ids = jnp.concatenate([first[2], second[2]], axis=1)
        ids = ids.at[:, self.time - 2 : self.time + 2].set(2)  # a document across the cut
        first_ids, second_ids = jnp.split(ids, 2, axis=1)
        (first_inputs, second_inputs) = first[0], second[0]
        # Cotangents are not needed here, but the compiled program takes them.
        middle = self.run(first_inputs, params, first_ids, state, first[4])["final"]
        after = self.run(second_inputs, params, second_ids, middle, second[4])
        carried = after["gradients"][2]
        before = self.run(first_inputs, params, first_ids, state, (first[4][0], carried))

        def joined(*trees):
            return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *trees)

        whole = self.reference(
            joined(first_inputs, second_inputs),
            params,
            ids,
            state,
            (joined(first[4][0], second[4][0]), second[4][1]),
        )
        parts = before["gradients"], after["gradients"]
        got = dict(
            outputs=joined(before["outputs"], after["outputs"]),
            final=after["final"],
            gradients=(
                joined(parts[0][0], parts[1][0]),
                jax.tree.map(jnp.add, parts[0][1], parts[1][1]),
                parts[0][2],
            ),
        )
        assert_close(f"{self.subject.name}: split = whole", got, whole, tolerance)

    def check_causal(self):
        """Law 4, exactly: later tokens change nothing before them; padding changes nothing."""
        cut = int(self.rng.integers(1, self.time))
        inputs, params, ids, state, (cotangents, final) = self.draw()
        other = self.subject.inputs(self.rng, self.batch, self.time, self.dtype)
        cotangents = jax.tree.map(lambda x: x.at[:, cut:].set(0), cotangents)
        cotangents = cotangents, jax.tree.map(jnp.zeros_like, final)
        later_BT = jnp.broadcast_to(jnp.arange(self.time)[None] >= cut, ids.shape)

        def replaced(mask_BT):
            return jax.tree.map(lambda x, y: jnp.where(_like(mask_BT, x), y, x), inputs, other)

        was, later, padded = (
            self.run(x, params, ids, state, cotangents)
            for x in (inputs, replaced(later_BT), replaced(ids == 0))
        )

        def only(tree, mask_BT):
            return jax.tree.map(lambda x: jnp.where(_like(mask_BT, x), x, 0), tree)

        def same(what, got, want):
            assert_close(f"{self.subject.name}: {what}", got, want, 0)

        def nothing(what, tree):
            same(what, tree, jax.tree.map(jnp.zeros_like, tree))

        earlier = only(later["outputs"], ~later_BT), only(was["outputs"], ~later_BT)
        same("a later token changes an earlier output", *earlier)
        nothing("a later token gets a gradient", only(was["gradients"][0], later_BT))
        nothing("padding has an output", only(was["outputs"], ids == 0))
        nothing("padding gets a gradient", only(was["gradients"][0], ids == 0))
        same("padding changes a result", padded, was)

    def check_finite(self):
        """Law 5: with extreme inputs values and gradients are finite and equal the reference's."""
        for name, extreme in self.subject.extremes.items():
            inputs, *rest = self.draw()
            result = self.run(extreme(inputs), *rest)
            for path, leaf in jax.tree_util.tree_leaves_with_path(result):
                if not np.all(np.isfinite(np.asarray(leaf, np.float64))):
                    raise AssertionError(
                        f"{self.subject.name}, {name}: not finite: {jax.tree_util.keystr(path)}"
                    )

    def check_contained(self, tolerance=1e-5):
        """Law 8: NaN or infinity of a document or of padding reaches no other document."""
        inputs, params, ids, state, (cotangents, final) = self.draw()
        final = jax.tree.map(jnp.zeros_like, final)
        was = self.run(inputs, params, ids, state, (cotangents, final))
        plan = contained.Planted(self.rng, np.asarray(ids))
        planted = plan.inputs(inputs), params, ids, plan.state(state)
        outputs = self.run(*planted, (cotangents, final))["outputs"]
        found = self.run(*planted, (plan.cotangents(cotangents, outputs), final))
        contained.check_same_elsewhere(self.subject, plan, found, was, tolerance)

    def check_deterministic(self):
        """Law 7: two runs, the same bits."""
        arguments = self.draw()
        assert_close(
            f"{self.subject.name}: two runs", self.run(*arguments), self.run(*arguments), 0
        )


#: Law 1 is part of law 3, which compares with the reference.
LAWS = {
    name: getattr(Held, f"check_{name}")
    for name in ("packed", "split", "causal", "finite", "deterministic", "contained")
}


def _float64(x):
    x = jnp.asarray(x)
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _like(mask_BT, x):
    return mask_BT.reshape(mask_BT.shape + (1,) * (x.ndim - 2))
