"""Configs: the settings of a run, read and checked before any device is used."""

from hybridlm.config.load import load, read, read_json, sweep
from hybridlm.config.recipe_file import recipe_module
from hybridlm.data.settings import DataConfig, SourceConfig, TokenizerConfig
from hybridlm.generation.settings import SampleConfig
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel.settings import MeshConfig
from hybridlm.probes.settings import ProbesConfig
from hybridlm.settings.plain import flat, to_dict
from hybridlm.train.settings import Config, InitConfig, OptimizerConfig, TrainConfig

__all__ = [
    "Config",
    "DataConfig",
    "InitConfig",
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
    "recipe_module",
    "sweep",
    "to_dict",
]
