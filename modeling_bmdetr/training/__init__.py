"""Training on transformers' Trainer and Accelerate."""

from .arguments import BMDetrTrainingArguments
from .checkpointing import last_checkpoint
from .trainer import BMDetrTrainer

__all__ = ["BMDetrTrainer", "BMDetrTrainingArguments", "last_checkpoint"]
