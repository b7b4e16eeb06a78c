"""Runs in the reference environment: makes fixtures, and checks what was exported from them."""

import argparse
import importlib
import json
import pathlib
import random
import sys
import zlib

import numpy as np
import torch
import transformers
from cases import CASES, LENGTHS, draw_parameters

HERE = pathlib.Path(__file__).resolve().parent
for _file in sorted(HERE.glob("family_*.py")):  # each registers its cases
    importlib.import_module(_file.stem)


def make(out: pathlib.Path, name: str, seed: int) -> None:
    """Writes one fixture."""
    seed = zlib.crc32(f"{name} {seed}".encode())
    case, draw = CASES[name], random.Random(seed)
    config = case.config(draw)
    torch.manual_seed(seed)
    model = case.model(config).eval()
    draw_parameters(model, seed)
    case.initialise(model, draw)
    dtype = draw.choice((torch.bfloat16, torch.float32))
    if sum(p.numel() for p in model.parameters()) > 25_000:
        dtype = torch.bfloat16
    if case.exact:
        dtype = torch.float32
    model = model.to(dtype)
    model.save_pretrained(out / name)
    # Loaded again: a buffer such as the frequencies of RoPE would stay rounded.
    model = case.model.from_pretrained(out / name, dtype=torch.float32).eval()
    tokens = [
        np.array([draw.randrange(config.get_text_config().vocab_size) for _ in range(n)], np.int32)
        for n in LENGTHS
    ]
    arrays = {f"tokens_{i}": t for i, t in enumerate(tokens)}
    arrays |= {f"logits_{i}": logits(model, t) for i, t in enumerate(tokens)}
    for leftover in ("generation_config.json",):
        (out / name / leftover).unlink(missing_ok=True)
    np.savez_compressed(out / name / "expected.npz", **arrays)
    size = sum(f.stat().st_size for f in (out / name).iterdir())
    largest = np.abs(arrays["logits_0"]).max()
    print(f"{name}: {size / 1000:.0f} kB, logits up to {largest:.2f}", flush=True)


def logits(model, tokens: np.ndarray) -> np.ndarray:
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the default needs sizes of whole 16 bytes
    with torch.no_grad():
        return (
            model(torch.tensor(tokens[None], dtype=torch.long), use_cache=False).logits[0].numpy()
        )


#: Settings that choose the order of sums, hence their rounding; an export does not have them.
SUMMATION_ORDER = ("chunk_size", "mamba_chunk_size", "block_size")


def check(made: pathlib.Path, exported: pathlib.Path) -> bool:
    """Loads what was exported from a fixture and compares it; writes exported.json."""
    name = made.name
    tensors, again = load(made), load(exported)
    config = json.loads((made / "config.json").read_text())
    if "text_config" in config:
        tensors, config = text_tensors(tensors), config["text_config"]
    order = {key: config[key] for key in SUMMATION_ORDER if key in config}
    loader = transformers.AutoModelForCausalLM
    written = json.loads((exported / "config.json").read_text())
    if "text_config" in written:  # the text model has no class of its own
        loader, again = getattr(transformers, written["architectures"][0]), text_tensors(again)
        order["config"] = transformers.AutoConfig.from_pretrained(exported)
        whole = transformers.AutoConfig.from_pretrained(made)
        order["config"].vision_config = whole.vision_config
    model, report = loader.from_pretrained(
        exported, output_loading_info=True, dtype=torch.float32, **order
    )
    # A buffer that an export leaves out is computed again; a wrong one would change the logits.
    buffers = {n for n, _ in model.named_buffers()} - again.keys()
    different = sorted(
        n
        for n in tensors.keys() - buffers | again.keys()
        if n not in tensors or n not in again or not torch.equal(tensors[n], again[n])
    )
    expected = np.load(made / "expected.npz")
    found = logits(model.eval(), expected["tokens_0"])
    difference = np.abs(found - expected["logits_0"]).max() / np.abs(expected["logits_0"]).max()
    lost = {k: sorted(n for n in {*v} - buffers if "visual" not in n) for k, v in report.items()}
    lost = {k: names for k, names in lost.items() if names}
    fine = not different and not lost and difference < 1e-6
    facts = {
        "transformers": transformers.__version__,
        "class": type(model).__name__,
        "largest difference of logits, of the largest logit": float(difference),
        "tensors that differ": different,
        "config.json": written,
    }
    (made / "exported.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{name}: exported as {facts['class']}, logits differ by {difference:.1e}", flush=True)
    if not fine:
        print(f"{name}: FAILED: tensors {different[:4]}, loading {lost}", flush=True)
    return fine


def text_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the text model inside another model, which are exported, by their names alone."""
    found = {}
    for name, tensor in tensors.items():
        if "language_model." in name or name.startswith("lm_head."):
            short = name.replace("language_model.", "").removeprefix("model.")
            found[short if short.startswith("lm_head.") else f"model.{short}"] = tensor
    return found


def load(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {n: t for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("make", "check"))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--exported", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.action == "make":
        options.out.mkdir(parents=True, exist_ok=True)
        for name in sorted(CASES):
            if options.only in name:
                make(options.out, name, options.seed)
        return 0
    folders = [f for f in sorted(options.out.iterdir()) if (options.exported / f.name).exists()]
    return not all([check(f, options.exported / f.name) for f in folders])


if __name__ == "__main__":
    sys.exit(main())
