"""Configs: what a run depends on, read and checked before any device is touched."""

from hybridlm.config.load import load, read, read_json
from hybridlm.config.recipes import smoke
from hybridlm.config.schema import (
    Config,
    DataConfig,
    MeshConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    ProbesConfig,
    SampleConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
    to_dict,
)

__all__ = [
    "Config",
    "DataConfig",
    "MLPConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProbesConfig",
    "SampleConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "load",
    "read",
    "read_json",
    "smoke",
    "to_dict",
]
