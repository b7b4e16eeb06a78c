"""Prints the tables of README.md from results/blockwise.json.

Run: python -m experiments.distill_then_replace.tables
"""

import json

from experiments.distill_then_replace.run import RESULTS


def main() -> None:
    found = json.loads(RESULTS.read_text())
    print(
        "| mixer, start | steps | relative error, first step | last step | layers that improved |"
    )
    print("|---|---|---|---|---|")
    for name, arm in found.items():
        errors = arm["relative_error"]
        better = sum(arm["last"][layer] < first for layer, first in arm["first"].items())
        print(
            f"| {name} | {arm['steps'][-1]} | {errors[0]:.3f} | {errors[-1]:.3f} |"
            f" {better} of {len(arm['first'])} |"
        )
    print()
    print(
        "| mixer, start | tokens/s | of the teacher's forward pass | held-out loss, all layers new |"
    )
    print("|---|---|---|---|")
    for name, arm in found.items():
        speed, forward = arm["tokens_per_second"], arm["teacher_forward_tokens_per_second"]
        share = f"{speed:,.1f} | {speed / forward:.0%}" if speed else "not measured | "
        loss = f"{arm['heldout_loss'][-1]:.2f}" if arm["heldout_loss"] else "not measured"
        print(f"| {name} | {share} | {loss} |")


if __name__ == "__main__":
    main()
