"""Turns a pretrained transformer into Native Hybrid Attention: a structural change, without training.

Every attention layer gets slots: queries, keys, values (with Qwen2's biases) and outputs are the teacher's,
the slots' gate is the key projection, and embedding, norms and feed-forwards stay as they are. A few
layers see all tokens, the others a window; other windows may be chosen later, because windows have no
parameters (`search.py`).

    python -m experiments.native_hybrid_attention.convert TEACHER --full 3 --out runs/nha/converted

TEACHER is a run, a model folder, or a checkpoint of transformers or of GGUF.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from hybridlm.distill.transfer import Transferred, transfer
from hybridlm.distill.windows import full_layers, nha_layers, with_windows
from hybridlm.errors import UserError, exit_code
from hybridlm.runs import OpenedModel, open_model, save_model
from hybridlm.runs.opened import check_new

WINDOW, SLOTS = 64, 64  # of the authors' hybridised models


def mixer(slots: int = SLOTS, empty_slots: str = "null") -> dict[str, Any]:
    """The settings of a layer that do not follow from the teacher's attention.

    Args:
      empty_slots: "null", as in the authors' code, or "masked", with which a window that no token has
        left is exactly the teacher's attention.
    """
    return dict(kind="nha", window=None, slots=slots, empty_slots=empty_slots)


def convert(
    teacher: OpenedModel,
    window: int = WINDOW,
    slots: int = SLOTS,
    full: Sequence[int] = (),
    empty_slots: str = "null",
) -> Transferred:
    """The teacher with Native Hybrid Attention in all attention layers.

    Args:
      window: tokens that a layer sees exactly; 0 is gated slot attention.
      full: the layers that see all tokens.

    Raises:
      UserError: where a layer of `full` has no attention, or the teacher has none.
    """
    found = transfer(teacher, mixer(slots, empty_slots))
    own = nha_layers(found.student.config)
    if wrong := sorted(set(full) - set(own)):
        raise UserError(f"layer {wrong[0]} cannot see all tokens: it has no attention to convert")
    windows = {i: None if i in full else window for i in own}
    return dataclasses.replace(found, student=with_windows(found.student, windows))


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="convert", description=__doc__.split("\n")[0])
    parser.add_argument("teacher", type=pathlib.Path, help="a run, model folder or checkpoint")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="new model folder")
    parser.add_argument("--window", type=int, default=WINDOW, help="tokens; 0 for slots alone")
    parser.add_argument("--slots", type=int, default=SLOTS, help="of a key/value head")
    parser.add_argument("--full", type=int, default=0, help="layers that see all tokens")
    parser.add_argument("--residue", type=int, default=0, help="their place in each block")
    parser.add_argument("--empty_slots", choices=("null", "masked"), default="null")
    given = parser.parse_args(argv)
    check_new(given.out)
    teacher = open_model(given.teacher)
    full = full_layers(teacher.config.depth, given.full, given.residue)
    found = convert(teacher, given.window, given.slots, full, given.empty_slots)
    print("\n".join(found.describe()))
    print(f"layers that see all tokens: {', '.join(map(str, full)) or 'none'}")
    save_model(found.student, given.out)
    print(f"{found.student.model.count():,} parameters are written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("convert", main))
