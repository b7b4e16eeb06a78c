"""Configs: what a run depends on, read and checked before any device is touched."""

from hybridlm.config.load import load, read, read_json, sweep
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
    flat,
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
    "flat",
    "load",
    "read",
    "read_json",
    "smoke",
    "sweep",
    "to_dict",
]
