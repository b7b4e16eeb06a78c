"""A model opened to look inside: activations by name, edits, gradients, attention."""

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.analysis import activations, layers, memory
from hybridlm.analysis.activations import Activations, Names
from hybridlm.analysis.edits import Edit
from hybridlm.errors import UserError
from hybridlm.generation.text import Sampling, generate_text
from hybridlm.models.params import Model, Params
from hybridlm.models.settings import ModelConfig
from hybridlm.runs import opened
from hybridlm.runs.opened import OpenedModel, Weights
from hybridlm.storage.address import split_step

#: A text, several (padded at the end), or token ids of shape (time,) or (batch, time).
Tokens = Any


def open_model(
    path: pathlib.Path | str, step: int | None = None, weights: Weights = "raw"
) -> "Inspected":
    """Opens a model to look inside, without the devices, mesh or class that wrote it.

    Args:
      path: a run's folder, or one of its checkpoints as "PATH@STEP"; a model folder; or a checkpoint
        of transformers.
      step, weights: as `hybridlm.runs.open_model`.

    Raises:
      UserError: as `hybridlm.runs.open_model`.
    """
    at, named = split_step(path)
    if named is not None and step is not None and named != step:
        raise UserError(f"{path} names step {named}, and step is {step}: name one")
    return Inspected(opened.open_model(at, named if step is None else step, weights))


@dataclasses.dataclass(frozen=True)
class Inspected:
    """An opened model whose activations have names.

    Every method takes `segment_ids` (batch, time), for documents packed into a row: 0 is padding, a
    change of id a boundary. None is one document a row, without the padding of unequal texts.

    Attributes:
      opened: the model, its parameters and its tokenizer.
      dtype: of activations and matrix products.
    """

    opened: OpenedModel
    dtype: Any = jnp.float32

    @property
    def config(self) -> ModelConfig:
        """Settings of the model."""
        return self.opened.config

    @property
    def model(self) -> Model:
        """The model's graph."""
        return self.opened.model

    @functools.cached_property
    def params(self) -> Params:
        """The parameters, on the device."""
        with (
            jax.ensure_compile_time_eval()
        ):  # arrays, also where a caller's program is being traced
            return jax.tree.map(jnp.asarray, self.opened.params)

    def at(self, step: int) -> "Inspected":
        """The model at another checkpoint of its run; compiled programs serve both.

        Raises:
          RunError: if the run has no such checkpoint.
        """
        params = self.opened.params_at(step)
        opened = dataclasses.replace(self.opened, params=params, step=step)
        return dataclasses.replace(self, opened=opened)

    @property
    def mixers(self) -> tuple[str, ...]:
        """The name of each layer's mixer, bottom to top."""
        return self.config.layout.names

    def tokens(self, tokens: Tokens) -> Any:
        """Token ids (batch, time), int32; a text begins with the tokenizer's first token.

        Several texts of unequal length are padded at the end with token 0. Where `segment_ids` is
        None they are 0 there, so that padding is no token.

        Raises:
          UserError: for no tokens, and for numbers of another shape.
        """
        return self._rows(tokens)[0]

    def strings(self, tokens: Tokens) -> list[list[str]]:
        """The text of each token, by row; bytes that are no text alone show as U+FFFD."""
        decode = self.opened.tokenizer.decode
        return [[decode([int(token)]) for token in row] for row in self.tokens(tokens)]

    def hooks(
        self, tokens: Tokens = ((0,),), *, states_at: Sequence[int] = ()
    ) -> dict[str, tuple[int, ...]]:
        """The shape of every activation by name, in the order of the forward pass.

        Args:
          tokens: whose shape the activations follow; a row of one token.
          states_at: as in `run_with_cache`.
        """
        tokens_BT = self.tokens(tokens)
        known = self._known(tokens_BT, _positions(states_at, tokens_BT.shape[1]))
        return {name: x.shape for name, x in known.items()}

    def run_with_cache(
        self,
        tokens: Tokens,
        names: Names = None,
        *,
        edits: Mapping[str, Edit] | None = None,
        segment_ids: Any = None,
        states_at: Sequence[int] = (),
    ) -> tuple[jax.Array, Activations]:
        """(logits (batch, time, vocabulary), activations by name); pure, and works under `jax.jit`.

        Args:
          names: the activations to keep: globs, or a function of a name; None keeps all, attention
            patterns (time x time) too. What is not kept is not in the compiled program.
          edits: functions of activations, by name; see `hybridlm.analysis.edits`. The cache holds an
            activation as edited.
          states_at: the tokens after which recurrent states are kept, as `attn.hook_state` with an
            axis of these positions after the batch; negative ones count from the end.

        Raises:
          UserError: if a glob or an edit names no activation. ValueError: for tokens that are not of
            this model.
        """
        tokens_BT, ids_BT = self._checked(tokens, segment_ids)
        if self._lengths(tokens) is not None and any(position < 0 for position in states_at):
            raise UserError(
                "states_at counts from the end, and the texts' ends differ: count from the start"
            )
        positions = _positions(states_at, tokens_BT.shape[1])
        known = self._known(tokens_BT, positions)
        self._check_edits(edits, tokens, known)
        chosen = activations.choose(names, known)
        return activations.forward(
            self.model, self.params, tokens_BT, ids_BT, chosen, edits, positions, self.dtype
        )

    def run_with_hooks(
        self, tokens: Tokens, edits: Mapping[str, Edit], *, segment_ids: Any = None
    ) -> jax.Array:
        """Logits (batch, time, vocabulary) with activations changed; see `run_with_cache`."""
        return self.run_with_cache(tokens, (), edits=edits, segment_ids=segment_ids)[0]

    def logits(self, tokens: Tokens, *, segment_ids: Any = None) -> jax.Array:
        """Logits (batch, time, vocabulary)."""
        return self.run_with_cache(tokens, (), segment_ids=segment_ids)[0]

    def generate(
        self,
        prompt: str,
        tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """What follows a document that begins with `prompt`, up to `tokens` tokens or its end.

        Args:
          temperature, top_k, top_p: as in `hybridlm.generation.text.Sampling`; temperature 0 is greedy.

        Raises:
          RunError: if the model's logits are not finite.
        """
        sampling = Sampling(temperature, top_k, top_p)
        opened = self.opened
        pieces = generate_text(
            self.model, self.params, opened.tokenizer, prompt, tokens, sampling, seed=seed
        )
        return "".join(pieces)

    def gradients(
        self,
        tokens: Tokens,
        of: Callable[[jax.Array], jax.Array],
        names: Names,
        *,
        edits: Mapping[str, Edit] | None = None,
        segment_ids: Any = None,
    ) -> tuple[jax.Array, Activations]:
        """(the value of `of(logits)`, its gradient to each of the activations `names`).

        Args:
          of: maps logits (batch, time, vocabulary) to a scalar.
          names, edits: as in `run_with_cache`. The gradient is to the activation after its edit.

        Raises:
          UserError: as `run_with_cache`, and for activations that are whole numbers.
        """
        tokens_BT, ids_BT = self._checked(tokens, segment_ids)
        known = self._known(tokens_BT, ())
        self._check_edits(edits, tokens, known)
        chosen = activations.choose(names, known)
        for name in chosen:
            if not jnp.issubdtype(known[name].dtype, jnp.floating):
                raise UserError(f"{name} is of whole numbers, which have no gradient: leave it out")
        return activations.gradients(
            self.model, self.params, tokens_BT, ids_BT, of, chosen, edits, self.dtype
        )

    def attention(
        self,
        tokens: Tokens,
        layer: int | Sequence[int],
        rows: Sequence[int] | None = None,
        *,
        segment_ids: Any = None,
    ) -> jax.Array | dict[int, jax.Array]:
        """Attention probabilities (batch, head, query, key) of the queries at `rows`.

        A row sums to 1, less what is on sinks and on the slots of Native Hybrid Attention. The work
        and the memory are those of the rows, never time x time.

        Args:
          layer: one, or several: then a dict by layer.
          rows: positions of queries; negative ones count from the end of each text. None is all.

        Raises:
          UserError: for a layer without attention.
        """
        tokens_BT, ids_BT = self._checked(tokens, segment_ids)
        lengths = self._lengths(tokens)
        if lengths is None:
            lengths = [tokens_BT.shape[1]] * tokens_BT.shape[0]
        if rows is None:
            chosen = [range(tokens_BT.shape[1])] * len(lengths)
        else:
            chosen = [[_position(row, time, "rows") for row in rows] for time in lengths]
        rows_BQ = jnp.asarray(chosen, jnp.int32)
        one = np.ndim(layer) == 0
        several = tuple(map(operator.index, (layer,) if one else layer))
        found = layers.attention_rows(
            self.model, self.params, tokens_BT, ids_BT, rows_BQ, several, self.dtype
        )
        return found[several[0]] if one else found

    def effective_attention(
        self,
        tokens: Tokens,
        layer: int,
        head: int | Sequence[int] | None = None,
        *,
        part: str | None = None,
        segment_ids: Any = None,
    ) -> jax.Array:
        """The exact attention matrix A of a mixer that is linear in its values, gates given.

        A @ v is the output of the mixer's operation, `hook_recurrence_out` (or `hook_z`), for the
        values v, `hook_v` (`hook_written` in Gated DeltaNet-2, which gates their channels): A holds
        decays, write strengths and the delta rule's removal of keys. It comes from running the mixer
        on columns of the identity as values, a block of columns at a time. Entries may be negative,
        and rows need not sum to 1. Softmax attention gives its pattern.

        Args:
          head: one, or several; None is all. Channels of Mamba, RG-LRU and short convolutions are
            heads, often thousands.
          part: "slots" or "window" of Native Hybrid Attention, which add up to the whole; a branch of
            a within-layer hybrid.

        Returns:
          (batch, query, key) for one head, (batch, head, query, key) for several. In at least float32,
          in which the mixer runs here whatever `dtype` is.

        Raises:
          UserError: for a mixer that names no values, or whose output is not linear in them; for more
            entries than `layers.MOST`, before they are computed.
        """
        tokens_BT, ids_BT = self._checked(tokens, segment_ids)
        return layers.effective_attention(
            self.model, self.params, tokens_BT, ids_BT, layer, head, part, self.dtype
        )

    def receptive_field(
        self,
        tokens: Tokens,
        layer: int,
        head: int | Sequence[int] | None = None,
        *,
        share: float = 0.9,
        part: str | None = None,
        segment_ids: Any = None,
    ) -> np.ndarray:
        """Tokens back that hold `share` of a query's effective attention, in absolute values.

        The query's own token counts 1. Float (batch, query), or (batch, head, query) for all heads;
        NaN for queries that read nothing, padding for one.
        """
        tokens_BT, ids_BT = self._checked(tokens, segment_ids)

        def of(head: int | Sequence[int]) -> np.ndarray:
            matrix = layers.effective_attention(
                self.model, self.params, tokens_BT, ids_BT, layer, head, part, self.dtype
            )
            return memory.receptive_field(np.asarray(matrix), share)

        if head is not None:
            return of(head)
        groups = layers.head_groups(self.model, layer, part, tokens_BT.shape)
        return np.concatenate([of(group) for group in groups], axis=1)

    def half_lives(self, tokens: Tokens, *, segment_ids: Any = None) -> dict[str, np.ndarray]:
        """Tokens in which decay alone halves a state, by the name of the mixer ("blocks.3.attn").

        ln 2 over the mean of minus the log decay, over tokens without padding: an array by head, by
        head and channel of the key (or slot), or by channel. Infinite without decay. The delta rule's
        removal of keys and what new tokens overwrite do not count.
        """
        tokens_BT, ids_BT = self._checked(tokens, segment_ids)
        _, kept = self.run_with_cache(tokens_BT, memory.decays, segment_ids=ids_BT)
        return memory.half_lives(kept, np.asarray(ids_BT))

    def state_norms(
        self, tokens: Tokens, states_at: Sequence[int] = (-1,), *, segment_ids: Any = None
    ) -> dict[str, np.ndarray]:
        """Frobenius norms (batch, position, head) of the states after chosen tokens, by name.

        States of channels without heads give one norm a channel, or of all channels (RG-LRU) one.
        """
        _, kept = self.run_with_cache(
            tokens, memory.states, segment_ids=segment_ids, states_at=states_at
        )
        return {name: memory.norms(np.asarray(state)) for name, state in kept.items()}

    def _known(self, tokens_BT: Any, positions: Sequence[int]) -> dict[str, jax.ShapeDtypeStruct]:
        return activations.shapes(self.model, *tokens_BT.shape, positions, self.dtype)

    def _check_edits(
        self,
        edits: Mapping[str, Edit] | None,
        tokens: Tokens,
        known: Mapping[str, jax.ShapeDtypeStruct],
    ) -> None:
        changeable = {name: x for name, x in known.items() if not memory.states(name)}
        activations.check_edits(
            edits, changeable, self.tokens(tokens).shape, one_end=self._lengths(tokens) is None
        )

    def _rows(self, tokens: Tokens) -> tuple[Any, list[int] | None]:
        """Token ids (batch, time), and the lengths of rows that are padded, or None."""
        if isinstance(tokens, str):
            tokens = [tokens]
        if isinstance(tokens, Sequence) and tokens and all(isinstance(t, str) for t in tokens):
            rows = [self._encoded(text) for text in tokens]
            lengths = [len(row) for row in rows]
            longest = max(lengths)
            padded = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
            return padded, (lengths if min(lengths) < longest else None)
        if not isinstance(tokens, jax.Array):
            tokens = np.asarray(tokens)
        if tokens.ndim not in (1, 2) or not tokens.size:
            raise UserError(
                f"tokens have the shape {tokens.shape}: give a text, several, or ids (time,) or"
                " (batch, time), at least one"
            )
        return (tokens[None] if tokens.ndim == 1 else tokens), None

    def _lengths(self, tokens: Tokens) -> list[int] | None:
        """Tokens of each text, where texts are of unequal length."""
        return self._rows(tokens)[1]

    def _encoded(self, text: str) -> np.ndarray:
        tokenizer = self.opened.tokenizer
        return np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)]).astype(np.int32)

    def _checked(self, tokens: Tokens, segment_ids: Any) -> tuple[Any, Any]:
        """Tokens and segment ids (batch, time), int32; traced ones are not looked at."""
        tokens_BT, lengths = self._rows(tokens)
        if segment_ids is None and lengths is not None:
            ids_BT = (np.arange(tokens_BT.shape[1]) < np.array(lengths)[:, None]).astype(np.int32)
        elif segment_ids is None:
            ids_BT = np.ones(tokens_BT.shape, np.int32)
        else:
            ids_BT = self.tokens(segment_ids)
        if not any(isinstance(x, jax.core.Tracer) for x in (tokens_BT, ids_BT)):
            opened.check_tokens(np.asarray(tokens_BT), np.asarray(ids_BT), self.config.vocab_size)
        return jnp.asarray(tokens_BT, jnp.int32), jnp.asarray(ids_BT, jnp.int32)


def _positions(states_at: Sequence[int], time: int) -> tuple[int, ...]:
    """Positions from the start, in order."""
    return tuple(sorted({_position(position, time, "states_at") for position in states_at}))


def _position(position: int, time: int, what: str) -> int:
    """A position counted from the start. Raises UserError for one outside the row."""
    if not -time <= position < time:
        raise UserError(f"{what} has {position}, and there are {time} tokens")
    return int(position) % time
