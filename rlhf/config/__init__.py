"""Strict, frozen configuration. Imports neither torch nor ray."""

from rlhf.config.load import (
    build_config,
    config_hash,
    dump_yaml,
    is_pipeline,
    known_keys,
    load_config,
    read_tree,
    stage_of,
)
from rlhf.config.model import (
    EngineConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    PlacementConfig,
    TelemetryConfig,
)
from rlhf.config.recovery import CheckpointConfig, RecoveryConfig
from rlhf.config.scores import FunctionSource, HttpSource, RewardModelSource, ScoreSource
from rlhf.config.secret import Secret, read_secret
from rlhf.config.seed import derive_seed
from rlhf.config.stages import (
    STAGES,
    DataConfig,
    EvaluateConfig,
    PpoConfig,
    RewardConfig,
    RolloutConfig,
    SampleConfig,
    SamplingConfig,
    SftConfig,
)

__all__ = [
    "STAGES",
    "CheckpointConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FunctionSource",
    "HttpSource",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "PlacementConfig",
    "PpoConfig",
    "RecoveryConfig",
    "RewardConfig",
    "RewardModelSource",
    "RolloutConfig",
    "SampleConfig",
    "SamplingConfig",
    "ScoreSource",
    "Secret",
    "SftConfig",
    "TelemetryConfig",
    "build_config",
    "config_hash",
    "derive_seed",
    "dump_yaml",
    "is_pipeline",
    "known_keys",
    "load_config",
    "read_secret",
    "read_tree",
    "stage_of",
]
