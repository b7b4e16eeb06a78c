"""Synthetic runs of the laziness experiment, with planted effects."""

import dataclasses

import numpy as np

from experiments.large_window_laziness import tables
from experiments.large_window_laziness.arms import MAIN, SETS
from experiments.large_window_laziness.tables import Run

SEEDS, NEVER = range(10), np.inf
ORDER = {"w4": 600.0, "full": 800.0, "w8": 900.0, "w16": 1300.0, "w32": 2400.0}


@dataclasses.dataclass
class Planted:
    """What the synthetic runs show, with noise from seed to seed.

    Attributes:
      times: mean step of retrieval by window.
      full_loss, local_loss: accuracy lost where full, or efficient, layers are bounded to 4.
      nope: gain of NoPE at twice the length.
      late: what w32 lacks at the end of the long budget.
      never: seeds in which neither long run retrieves.
      local: nats of local text that w32 has more than w4.
      noise: of ln of the times.
    """

    times: dict[str, float] = dataclasses.field(default_factory=lambda: dict(ORDER))
    full_loss: float = 0.9
    local_loss: float = 0.01
    nope: float = 0.4
    late: float = 0.0
    never: tuple[int, ...] = ()
    local: float = 0.0
    noise: float = 0.08


def made(planted, seed, seeds=SEEDS, sets=("core", "long")):
    """The runs of these sets, by this generator's seed."""
    rng = np.random.default_rng(seed)
    found = []
    for arm in [arm for name in sets for arm in SETS["main"][name]]:
        window, positions = arm.name.split("-")[0], arm.positions
        mean = planted.times.get(window, planted.times["w32"])  # recurrences and schedules, too
        for number in seeds:
            formed = mean * np.exp(rng.normal(0, planted.noise))
            if not arm.stops and number in planted.never:
                formed = NEVER
            end = arm.steps if not arm.stops or formed > arm.steps else formed + 350
            steps = np.arange(0, end // 50 + 1) * 50
            curve = {name: np.zeros(len(steps)) for name in tables.curve_columns()[2:]}
            lacks = planted.late if window == "w32" and not arm.stops else 0.0
            curve["step"] = steps
            curve[tables.distances(MAIN)[-1]] = np.where(
                steps >= formed, 0.98 - lacks + rng.normal(0, 0.01), 0.02
            )
            more = planted.local if window == "w32" else 0.0
            curve["local_nll"] = 1.4 + more + rng.normal(0, 0.004, len(steps))
            facts = {name: 1.0 for name in tables.run_columns()[2:]}
            facts |= {f"full_sees_{w}": 0.98 for w in MAIN.windows}
            facts |= {f"local_sees_{w}": 0.98 for w in MAIN.windows}
            facts["masked_none"] = 0.98
            facts["full_sees_4"] -= planted.full_loss + rng.normal(0, 0.02)
            facts["local_sees_4"] -= planted.local_loss + rng.normal(0, 0.01)
            gain = planted.nope if positions == "nope" else 0.0
            facts["length_2x"] = 0.4 + gain + rng.normal(0, 0.03)
            facts["budget"] = arm.steps
            found.append(Run(arm.name, number, curve, facts))
    return found
