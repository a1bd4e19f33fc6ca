"""Hugging Face models and tokenizers, with the tags of a schema as tokens. No transformer of our own."""

from parallel_r1.models.checks import check_model, check_vocabulary, positions
from parallel_r1.models.policy import (
    Policy,
    device_of,
    load,
    load_model,
    load_tokenizer,
    parameter_count,
    save,
    tags_of,
)
from parallel_r1.models.tiny import END_OF_TEXT, qwen3, random_model, train_tokenizer
from parallel_r1.models.tokens import tag_ids

__all__ = [
    "END_OF_TEXT",
    "Policy",
    "check_model",
    "check_vocabulary",
    "device_of",
    "load",
    "load_model",
    "load_tokenizer",
    "parameter_count",
    "positions",
    "qwen3",
    "random_model",
    "save",
    "tag_ids",
    "tags_of",
    "train_tokenizer",
]
