"""Training on transformers' Trainer and Accelerate."""

from .arguments import BMDetrTrainingArguments
from .trainer import BMDetrTrainer

__all__ = ["BMDetrTrainer", "BMDetrTrainingArguments"]
