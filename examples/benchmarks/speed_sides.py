"""The two sides that `bench.py` measures: this package, and the authors' released code in a folder given.

Each side does the same five pieces of work on the same rows, through its own public functions, in a process of its own
(`start_side`, `measure`).
"""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from bench_clock import peak_memory_mib, seconds_of, timed
from torch import Tensor, nn

VIDEO_DIRS, TEXT_DIR, PACKED_DIR = {"slowfast_features": 2304, "clip_features": 512}, "clip_text_features", "packed"
TEXT_DIM = 512
# Both sides normalise each encoder's part of a clip; this package does so where it is told the parts.
ENCODERS: dict[str, Any] = {
    "video_encoders": [{"name": name, "dim": dim} for name, dim in VIDEO_DIRS.items()],
    "text_encoder": {"name": TEXT_DIR, "dim": TEXT_DIM},
}
# The released evaluation reads 100 queries at a time.
EVALUATION_BATCH = 100
# In a row; the first finds memory that other operations have left in another shape.
UPDATES = 2
PEAK_SIZE = 1536  # rows and columns of the matrices whose product tells the peak

# Modules that the released code imports and does not use here, for where they are not installed.
STAND_INS: dict[str, dict[str, Any]] = {
    "torchvision": {"__version__": "0.99.0"},
    "pandas": {},
    "tensorboard": {},
    "torch.utils.tensorboard": {"SummaryWriter": object},
    "sklearn": {},
    "sklearn.metrics": {"precision_recall_curve": None},
}


def rows_of_batch(rows: Sequence[Mapping[str, Any]], batch_size: int) -> list[int]:
    """The first rows with different videos, as indices."""
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row["vid"], index)
    return list(first.values())[:batch_size]


class OwnSide:
    """This package, on the files as released or on the packed store made of them."""

    def __init__(self, folder: Path, options: argparse.Namespace, packed: bool, model: Any = None):
        from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, BMDetrProcessor
        from modeling_bmdetr.data import FeatureStore, read_rows
        from modeling_bmdetr.processes import keep_freed_memory
        from modeling_bmdetr.training import BMDetrTrainer, BMDetrTrainingArguments

        config = BMDetrConfig.released(video_dim=sum(VIDEO_DIRS.values()), text_dim=TEXT_DIM, **ENCODERS)
        contract = config.feature_contract
        store = (
            FeatureStore.from_packed(folder / PACKED_DIR, contract)
            if packed
            else FeatureStore.from_files([folder / name for name in VIDEO_DIRS], folder / TEXT_DIR, contract=contract)
        )
        torch.manual_seed(0)
        self.rows, self.eval_rows = read_rows(folder / "train.jsonl"), read_rows(folder / "test.jsonl")
        self.model = model or BMDetrForMomentRetrieval(config)
        self.trainer = BMDetrTrainer(
            self.model,
            BMDetrTrainingArguments(
                output_dir=str(folder / "own"),
                num_train_epochs=1,
                per_device_train_batch_size=options.batch_size,
                per_device_eval_batch_size=EVALUATION_BATCH,
                temporal_shifting=True,
                shifting_limit_s=1e9,  # the release shifts videos of any length
                dataloader_num_workers=options.workers,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                disable_tqdm=True,
                use_cpu=True,
            ),
            store=store,
            train_rows=self.rows,
            processor=BMDetrProcessor(contract, prediction_format="released"),
        )
        self.examples = self.trainer.dataset(self.rows, training=True)
        self.items = [(0, index) for index in rows_of_batch(self.rows, options.batch_size)]
        self.batch = self._make_batch()
        self.optimizer = self.trainer.create_optimizer()
        keep_freed_memory()  # as `BMDetrTrainer.train` does
        self.predictions: list[dict[str, Any]] = []

    def _make_batch(self) -> dict[str, Tensor]:
        batch = self.trainer.data_collator([self.examples[item] for item in self.items])
        return {name: value for name, value in batch.items() if name not in ("row_index", "durations_s")}

    def prepare(self) -> None:
        self._make_batch()

    def step(self) -> None:
        self.model.train()
        for _ in range(UPDATES):
            self.optimizer.zero_grad()
            self.model(**self.batch).loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
            self.optimizer.step()

    def epoch(self) -> dict[str, int]:
        self.trainer.train()
        return {"queries": len(self.rows)}

    def evaluate(self) -> None:
        self.predictions = self.trainer.predict_rows(self.eval_rows)

    def metrics(self) -> dict[str, float]:
        from modeling_bmdetr.evaluation import evaluate_submission

        return evaluate_submission(self.predictions, self.eval_rows, clip_length_s=1.0)

    def flops(self) -> dict[str, int]:
        """Floating-point operations of one update."""
        from torch.utils.flop_counter import FlopCounterMode

        from modeling_bmdetr.cpu_layers_bmdetr import ONEDNN_LINEAR

        def of_onednn(states: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
            return 2 * states.numel() * weight[0]

        def added_in_place(_: torch.Size, first: torch.Size, second: torch.Size, **__: Any) -> int:
            return 2 * first.numel() * second[1]

        own: dict[Any, Any] = {torch.ops.aten.addmm_: added_in_place}
        if ONEDNN_LINEAR is not None:
            own[ONEDNN_LINEAR] = of_onednn
        self.model.train()
        with FlopCounterMode(display=False, custom_mapping=own) as counter:
            self.model(**self.batch).loss.backward()
        return {"flops": counter.get_total_flops()}

    def matrix_peak(self) -> dict[str, float]:
        """The speed of this machine at the product of two square matrices: the best of several, in GFLOP/s."""
        first, second = torch.randn(PEAK_SIZE, PEAK_SIZE), torch.randn(PEAK_SIZE, PEAK_SIZE)
        return {"gflops": 2 * PEAK_SIZE**3 / min(seconds_of(lambda: first @ second, 5)) / 1e9}


class ReleasedSide:
    """The authors' code, called as its Charades-STA script and its training loop call it.

    Its data set leaves the negative queries out wherever a path has "val" or "test" in it, so it is given paths that
    are relative to the folder of the data.
    """

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.options = folder, options
        import_released(options.released_code)
        from bm_detr import inference, sampler, start_end_dataset, train
        from standalone_eval.eval import eval_submission

        self.train_epoch, self.compute_mr_results = train.train_epoch, inference.compute_mr_results
        self.eval_submission, self.data = eval_submission, start_end_dataset
        train.set_seed(0, use_cuda=False)
        with contextlib.chdir(folder):
            self.opt = released_options(options)
            self.train_set = self._data_set(self.opt.train_path, use_temporal_shifting=True)
            self.eval_set = self._data_set(self.opt.eval_path, use_temporal_shifting=False)
            self.model, self.criterion, self.optimizer, _ = inference.setup_model(self.opt)
            loading: dict[str, Any] = {
                "collate_fn": start_end_dataset.start_end_collate,
                "num_workers": options.workers,
            }
            loading["pin_memory"] = self.opt.pin_memory
            batches = sampler.build_batch_sampler(dataset=self.train_set, bsz=self.opt.bsz)
            self.loader = torch.utils.data.DataLoader(self.train_set, batch_sampler=batches, **loading)
            self.eval_loader = torch.utils.data.DataLoader(
                self.eval_set, batch_size=EVALUATION_BATCH, shuffle=False, **loading
            )
            self.indices = rows_of_batch(self.train_set.data, options.batch_size)
            self.batch = self.make_batch()
        self.predictions: list[dict[str, Any]] = []

    def _data_set(self, path: str, use_temporal_shifting: bool) -> Any:
        opt = self.opt
        return self.data.build_dataset(
            {
                "dset_name": opt.dset_name,
                "data_path": path,
                "v_feat_dirs": opt.v_feat_dirs,
                "q_feat_dir": opt.t_feat_dir,
                "q_feat_type": opt.t_feat_type,
                "max_q_l": opt.max_q_l,
                "max_v_l": opt.max_v_l,
                "ctx_mode": opt.ctx_mode,
                "data_ratio": opt.data_ratio,
                "normalize_v": not opt.no_norm_vfeat,
                "normalize_t": not opt.no_norm_tfeat,
                "clip_len": opt.clip_length,
                "max_windows": opt.max_windows,
                "span_loss_type": opt.span_loss_type,
                "txt_drop_ratio": opt.txt_drop_ratio,
                "use_temporal_shifting": use_temporal_shifting,
            }
        )

    def make_batch(self) -> Any:
        return self.data.start_end_collate([self.train_set[index] for index in self.indices])

    def prepare(self) -> None:
        with contextlib.chdir(self.folder):
            self.make_batch()

    def _train(self, batches: Any) -> None:
        with contextlib.chdir(self.folder):
            no_writer = types.SimpleNamespace(add_scalar=lambda *_: None)  # where TensorBoard's is wanted
            self.train_epoch(self.model, self.criterion, batches, self.optimizer, self.opt, 0, no_writer)

    def step(self) -> None:
        """The released training loop over one batch, again and again."""
        self._train([self.batch] * UPDATES)

    def epoch(self) -> dict[str, int]:
        counted = CountingLoader(self.loader)
        self._train(counted)
        return {"queries": counted.queries}

    def evaluate(self) -> None:
        with contextlib.chdir(self.folder):
            self.predictions, _ = self.compute_mr_results(
                self.model, self.eval_loader, self.opt, criterion=self.criterion
            )

    def metrics(self) -> dict[str, float]:
        metrics = self.eval_submission(self.predictions, self.eval_set.data, self.opt, verbose=False)["full"]
        recall, precision = metrics["MR-R1"], metrics["MR-mAP"]
        return {
            **{f"MR-full-R1@{threshold}": recall[threshold] for threshold in ("0.3", "0.5", "0.7")},
            **{f"MR-full-mAP@{threshold}": precision[threshold] for threshold in ("0.5", "0.75")},
            "MR-full-mAP": precision["average"],
        }


class CountingLoader:
    """A data loader that counts the queries it yields."""

    def __init__(self, loader: Any):
        self.loader, self.queries = loader, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.queries += len(batch[0])
            yield batch


def accept_data_source(self: Any, data_source: Any = None) -> None:
    """The constructor of a sampler in the PyTorch of the release; the argument had no effect there either."""


def import_released(folder: str) -> None:
    """Makes the released code importable; what it imports without need is stood in for where it is not installed."""
    if (path := str(Path(folder).resolve())) not in sys.path:
        sys.path.insert(0, path)
    logging.getLogger("bm_detr").setLevel(logging.WARNING)
    missing = [name for name in STAND_INS if "." not in name and importlib.util.find_spec(name) is None]
    for name, values in STAND_INS.items():
        # torch.utils.tensorboard is there only with tensorboard.
        package = "tensorboard" if name.endswith("tensorboard") else name.partition(".")[0]
        if package in missing and name not in sys.modules:
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            vars(module).update(values)
            sys.modules[name] = module
    if torch.utils.data.Sampler.__init__ is object.__init__:
        torch.utils.data.Sampler.__init__ = accept_data_source  # type: ignore[method-assign]


def released_options(options: argparse.Namespace) -> Any:
    """The options of the released Charades-STA script for SlowFast and CLIP features, on the CPU."""
    from bm_detr.config import BaseOptions

    class Options(BaseOptions):
        def display_save(self, opt: Any) -> None:
            """Prints nothing: the release needs another package to print a table."""

    arguments = (
        "--dset_name charades --ctx_mode video_tef --train_path train.jsonl --eval_path test.jsonl "
        f"--eval_split_name test --v_feat_dirs {' '.join(VIDEO_DIRS)} --v_feat_dim {sum(VIDEO_DIRS.values())} "
        f"--v_feat_type slowfast_clip --t_feat_type clip --t_feat_dir {TEXT_DIR} --t_feat_dim {TEXT_DIM} "
        f"--results_root released --exp_id speed --clip_length 1 --bsz {options.batch_size} --max_v_l 75 --max_q_l 32 "
        "--n_epoch 100 --lw_saliency 4 --lr 0.0002 --lr_drop 40 --use_temporal_shifting "
        f"--device -1 --no_pin_memory --num_workers {options.workers}"
    )
    before, sys.argv = sys.argv, ["train.py", *arguments.split()]
    try:
        opt = Options().parse()
    finally:
        sys.argv = before
    opt.train_log_txt_formatter = "{time_str} [Epoch] {epoch:03d} [Loss] {loss_str}\n"
    return opt


def make_side(name: str, folder: Path, options: argparse.Namespace) -> Any:
    """`released`, `files` or `packed`; or `equality`, both sides with the same weights."""
    torch.set_num_threads(options.threads)
    if name == "equality":
        from speed_equality import BothSides

        return BothSides(folder, options)
    if name == "released":
        return ReleasedSide(folder, options)
    return OwnSide(folder, options, packed=name == "packed")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on standard output or error: both sides write tables, logs and progress bars there."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


_side: Any = None  # of this process


def start_side(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Makes a side that `measure` then works with; called once in a process of its own."""
    global _side
    with quiet():
        _side = make_side(name, folder, options)


def measure(operation: str | None) -> dict[str, Any]:
    """What an operation of the side returns, its seconds by the clock and of processor time, and the peak so far; None
    only asks for the peak."""
    with quiet():
        clock_s, cpu_s, returned = timed(getattr(_side, operation) if operation else lambda: None)
    return {"clock_s": clock_s, "cpu_s": cpu_s, "returned": returned, "peak_mib": peak_memory_mib()}
