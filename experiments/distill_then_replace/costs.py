"""The cost of the papers' budgets, computed from the configs: writes results/costs.json.

The hours in README.md assume that 40% of an A800's 312 TFLOP/s in bfloat16 are reached.

Run: python -m experiments.distill_then_replace.costs
"""

import pathlib

from hybridlm import config as configs
from hybridlm.analysis.cost import cost
from hybridlm.runs.json_files import write_json

HERE = pathlib.Path(__file__).parent
MODELS = {
    "qwen2_5_1_5b": "Qwen2.5-1.5B",
    "llama_3_2_3b": "Llama-3.2-3B",
    "llama_3_1_8b": "Llama-3.1-8B",
}
ROWS = {
    f"{title}, {mixer.upper()}": f"papers.py:model={name},mixer={mixer}"
    for name, title in MODELS.items()
    for mixer in ("gdn", "gla")
} | {f"HALO of Qwen3-1.7B, stage {stage}": f"halo.py:stage={stage}" for stage in (1, 2, 3)}


def main() -> None:
    found = {row: cost(configs.load(f"{HERE / recipe}", [])) for row, recipe in ROWS.items()}
    write_json(HERE / "results" / "costs.json", found)


if __name__ == "__main__":
    main()
