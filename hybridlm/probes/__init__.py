"""Probes: measurements inside a model, on any checkpoint of any hybrid.

A probe takes a model, its parameters and prompts, and returns a `Table` of plain rows with its
definition and source. Probes compute only the layers and query rows they need, never a T x T
matrix.
"""

from hybridlm.probes.answers import Answers, Restriction, answers
from hybridlm.probes.gradients import Influence, gradient_influence, influence_norms
from hybridlm.probes.heads import (
    TOP_K,
    HeadEntropy,
    RetrievalHead,
    attention_entropy,
    heads_at_once,
    layers_with_heads,
    retrieval_heads,
    top_heads,
)
from hybridlm.probes.induction import InductionHead, induction_heads, repeated_prompts
from hybridlm.probes.layers import View, all_heads, head_counts, mixer_names, over_layers
from hybridlm.probes.linear import LayerAccuracy, fit_logistic, layer_probing
from hybridlm.probes.masking import Masked, head_masking, mask_heads
from hybridlm.probes.prompts import Batch, Prompt, Prompts
from hybridlm.probes.receptive_field import Restricted, receptive_field
from hybridlm.probes.slots import SlotShare, slot_share
from hybridlm.probes.table import Head, Table
from hybridlm.probes.weights import QKDistance, qk_distance

__all__ = [
    "Answers",
    "Batch",
    "Head",
    "HeadEntropy",
    "InductionHead",
    "Influence",
    "LayerAccuracy",
    "Masked",
    "Prompt",
    "Prompts",
    "QKDistance",
    "Restricted",
    "Restriction",
    "RetrievalHead",
    "SlotShare",
    "TOP_K",
    "Table",
    "View",
    "all_heads",
    "answers",
    "attention_entropy",
    "fit_logistic",
    "gradient_influence",
    "head_counts",
    "head_masking",
    "layers_with_heads",
    "heads_at_once",
    "induction_heads",
    "influence_norms",
    "layer_probing",
    "mask_heads",
    "mixer_names",
    "over_layers",
    "qk_distance",
    "receptive_field",
    "repeated_prompts",
    "retrieval_heads",
    "slot_share",
    "top_heads",
]
