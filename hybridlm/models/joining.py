"""The settings of how a layer's halves join the residual stream."""

from typing import Literal

from hybridlm.settings.bounds import PositiveFloat, settings

BlockName = Literal["prenorm", "postnorm", "sandwich", "scaled_sandwich", "parallel", "normed"]


@settings
class BlockConfig:
    """Where the norms of a layer sit, and factors in its sums.

    A half makes x into `keep` x + `add` half(x).

    Attributes:
      norms: as `model.block`.
      mixer_keep: factor on the residual stream where the mixer's output is added.
      mixer_add: factor on the mixer's output; `model.residual_scale` multiplies it.
      mlp_keep: as mixer_keep, for the feed-forward.
      mlp_add: as mixer_add, for the feed-forward.
    """

    norms: BlockName = "prenorm"
    mixer_keep: PositiveFloat = 1.0
    mixer_add: PositiveFloat = 1.0
    mlp_keep: PositiveFloat = 1.0
    mlp_add: PositiveFloat = 1.0
