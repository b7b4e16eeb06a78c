"""`hybridlm generate`."""

from hybridlm.commands.command import Command
from hybridlm.commands.shared import CheckpointSettings, CompilationSettings
from hybridlm.generation.settings import GenerateSettings


def _run(
    checkpoint: CheckpointSettings, settings: GenerateSettings, compilation: CompilationSettings
) -> int:
    from hybridlm.generation.text import Sampling, generate_text
    from hybridlm.runs import open_model

    compilation.start()
    opened = open_model(checkpoint.workdir, checkpoint.step, checkpoint.weights)
    print(settings.prompt, end="", flush=True)
    for text in generate_text(
        opened.model,
        opened.params,
        opened.tokenizer,
        settings.prompt,
        settings.tokens,
        Sampling(settings.temperature, settings.top_k, settings.top_p),
        seed=settings.seed,
    ):
        print(text, end="", flush=True)
    print()
    return 0


GENERATE = Command(
    "generate",
    "continue a prompt with a trained model",
    lambda: (CheckpointSettings, GenerateSettings, CompilationSettings),
    _run,
)
