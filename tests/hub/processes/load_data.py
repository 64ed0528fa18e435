"""Loads a pushed data set with plain `load_dataset`, in a process and with a cache of its own."""

from datasets import load_dataset
from reporting import ARGUMENTS, outcome, write_report


def rows(name: str, **options) -> dict[str, list]:
    return {split: part.to_list() for split, part in load_dataset(name, **options).items()}


outcome("parquet", lambda: rows("tester/tacos"))
outcome("commit", lambda: rows("tester/tacos", revision=ARGUMENTS["commit"]))
outcome("absent", lambda: rows("tester/never"))
outcome("without token", lambda: rows("tester/tacos", token=False, cache_dir="empty"))
write_report()
