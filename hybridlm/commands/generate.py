"""`hybridlm generate`."""

import itertools

from hybridlm.commands.command import Command
from hybridlm.commands.shared import CheckpointSettings, CompilationSettings
from hybridlm.generation.settings import GenerateSettings


def _run(
    checkpoint: CheckpointSettings, settings: GenerateSettings, compilation: CompilationSettings
) -> int:
    from hybridlm.generation.text import Sampling, generate_text
    from hybridlm.progress import doing
    from hybridlm.runs import open_model

    compilation.start()
    opened = open_model(checkpoint.workdir, checkpoint.step, checkpoint.weights)
    pieces = generate_text(
        opened.model,
        opened.params,
        opened.tokenizer,
        settings.prompt,
        settings.tokens,
        Sampling(settings.temperature, settings.top_k, settings.top_p),
        seed=settings.seed,
    )
    with doing("compiling the model and reading the prompt"):
        first = "".join(itertools.islice(pieces, 2))  # the second is of the decoding program
    print(settings.prompt + first, end="", flush=True)
    for text in pieces:
        print(text, end="", flush=True)
    print()
    return 0


GENERATE = Command(
    "generate",
    "continue a prompt with a trained model",
    lambda: (CheckpointSettings, GenerateSettings, CompilationSettings),
    _run,
)
