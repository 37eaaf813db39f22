"""The schema of a run and its loader. Row 0: imports pydantic and PyYAML only."""

from tunewright.config.data import DataConfig
from tunewright.config.evaluate import EvaluateConfig, Gates, TaskConfig
from tunewright.config.load import load_run, load_yaml_file, resolved_json
from tunewright.config.methods import (
    AnyMethod,
    DoraConfig,
    FreezeConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    QloraConfig,
    RsloraConfig,
)
from tunewright.config.objectives import ObjectiveConfig, PreferenceConfig, SideTask
from tunewright.config.run import RunConfig, default_store_root
from tunewright.config.serve import ServeConfig
from tunewright.config.sources import (
    BuiltinSource,
    FileSource,
    HttpSource,
    HuggingFaceSource,
    LocalSource,
    Sample,
    Source,
    SqlSource,
    source_label,
)
from tunewright.config.stages import EarlierStage
from tunewright.config.sweep import SweepConfig
from tunewright.config.train import BaseModelConfig, TrainConfig

__all__ = [
    "AnyMethod",
    "BaseModelConfig",
    "BuiltinSource",
    "DataConfig",
    "DoraConfig",
    "EarlierStage",
    "EvaluateConfig",
    "FileSource",
    "FreezeConfig",
    "FullConfig",
    "Gates",
    "HttpSource",
    "HuggingFaceSource",
    "Ia3Config",
    "LocalSource",
    "LoraConfig",
    "ObjectiveConfig",
    "PreferenceConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "QloraConfig",
    "RsloraConfig",
    "RunConfig",
    "Sample",
    "ServeConfig",
    "SideTask",
    "Source",
    "SqlSource",
    "SweepConfig",
    "TaskConfig",
    "TrainConfig",
    "default_store_root",
    "load_run",
    "load_yaml_file",
    "resolved_json",
    "source_label",
]
