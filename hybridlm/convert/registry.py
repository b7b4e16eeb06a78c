"""The families, a line each; the first that can hold a model is the one that it is exported as."""

from hybridlm.convert.families.afmoe import AFMoE
from hybridlm.convert.families.bamba import Bamba
from hybridlm.convert.families.cohere2 import Cohere2
from hybridlm.convert.families.deepseek import DeepSeekV3, DeepSeekV32, GlmMoeDsa
from hybridlm.convert.families.falcon_h1 import FalconH1
from hybridlm.convert.families.gemma import Gemma2, Gemma3
from hybridlm.convert.families.gemma4 import Gemma4
from hybridlm.convert.families.glm4_moe import Glm4MoE, SolarOpen
from hybridlm.convert.families.glm5_next import Glm5Next
from hybridlm.convert.families.gpt_oss import GptOss
from hybridlm.convert.families.granite_hybrid import GraniteHybrid
from hybridlm.convert.families.jamba import Jamba
from hybridlm.convert.families.kimi_linear import KimiLinear
from hybridlm.convert.families.lfm2 import LFM2, LFM2MoE
from hybridlm.convert.families.llama import Llama
from hybridlm.convert.families.llama4 import Llama4
from hybridlm.convert.families.mamba import FalconMamba, Mamba
from hybridlm.convert.families.mamba2 import Mamba2
from hybridlm.convert.families.mimo_v2 import MiMoV2Flash
from hybridlm.convert.families.minimax import MiniMax
from hybridlm.convert.families.mistral import Ministral, Ministral3, Mistral
from hybridlm.convert.families.mixtral import Mixtral
from hybridlm.convert.families.nemotron_h import NemotronH
from hybridlm.convert.families.olmo import Olmo2, Olmo3
from hybridlm.convert.families.olmo_hybrid import OlmoHybrid
from hybridlm.convert.families.phi3 import Phi3
from hybridlm.convert.families.qwen import Qwen2, Qwen3
from hybridlm.convert.families.qwen3_moe import Qwen3MoE
from hybridlm.convert.families.qwen3_next import Qwen3Next, Qwen35, Qwen35MoE
from hybridlm.convert.families.recurrent_gemma import RecurrentGemma
from hybridlm.convert.families.smollm3 import SmolLM3
from hybridlm.convert.family import Family
from hybridlm.convert.wrapped import WRAPPERS
from hybridlm.errors import ConvertError

FAMILIES: tuple[Family, ...] = (
    Llama(),
    Mistral(),
    Phi3(),
    Qwen2(),
    Qwen3(),
    SmolLM3(),
    Ministral(),
    Ministral3(),
    Olmo2(),
    Olmo3(),
    Gemma2(),
    Gemma3(),
    Gemma4(),
    Cohere2(),
    Llama4(),
    Mixtral(),
    Qwen3MoE(),
    GptOss(),
    AFMoE(),
    Glm4MoE(),
    SolarOpen(),
    MiMoV2Flash(),
    Mamba(),
    FalconMamba(),
    Mamba2(),
    NemotronH(),
    Bamba(),
    FalconH1(),
    Jamba(),
    Qwen3Next(),
    Qwen35(),
    Qwen35MoE(),
    OlmoHybrid(),
    KimiLinear(),
    DeepSeekV3(),
    DeepSeekV32(),
    GlmMoeDsa(),
    Glm5Next(),
    MiniMax(),
    GraniteHybrid(),
    LFM2(),
    LFM2MoE(),
    RecurrentGemma(),
)

BY_ARCHITECTURE: dict[str, Family] = {
    name: family for family in FAMILIES for name in (family.architecture, *family.also)
}


def find(architecture: str, where: str) -> Family:
    """The family of a class of transformers.

    Raises:
      ConvertError: if there is none; it lists those there are.
    """
    if architecture in BY_ARCHITECTURE:
        return BY_ARCHITECTURE[architecture]
    known = ", ".join(sorted({*BY_ARCHITECTURE, *WRAPPERS}))
    raise ConvertError(f"{where}: hybridlm has no {architecture}; it has {known}")
