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
    DpoConfig,
    EvaluateConfig,
    PairConfig,
    PpoConfig,
    RewardConfig,
    RolloutConfig,
    SampleConfig,
    SamplingConfig,
    SftConfig,
    TrainerConfig,
)

__all__ = [
    "STAGES",
    "CheckpointConfig",
    "DataConfig",
    "DpoConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FunctionSource",
    "HttpSource",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "PairConfig",
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
    "TrainerConfig",
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
