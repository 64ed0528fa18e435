"""Training by recipe: reading one (`recipe.py`), what it needs (`preparation.py`), how far it came before
(`progress.py`), running it (`running.py`)."""

from .preparation import RecipeRows, load_rows, load_set, open_store, register_benchmarks, training_arguments
from .recipe import Recipe, read_recipe
from .running import predict_and_evaluate, train_by_recipe

__all__ = [
    "Recipe",
    "read_recipe",
    "train_by_recipe",
    "RecipeRows",
    "load_rows",
    "load_set",
    "open_store",
    "training_arguments",
    "register_benchmarks",
    "predict_and_evaluate",
]
