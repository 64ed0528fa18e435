"""A trained model as a file for other runtimes: ONNX, or a program of `torch.export`.

The exported graph takes any number of pairs, clips and tokens. It is the model without losses, negatives and shifted
views: `video_features, video_mask, text_features, text_mask` in, the tensors of [`BMDetrMomentRetrievalOutput`] out.
Beside it lies `export.json`, which says what the file is and carries the feature contract and how moments are read
from the outputs, so that a program without this package can prepare inputs and answer (`examples/onnx_answer.py`). The
weightless encoder of frames is exported as well.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from .contract_bmdetr import FeatureContract
from .encoders_bmdetr import WEIGHTLESS_VIDEO_ENCODERS, build_video_encoder
from .files_bmdetr import replacing_folder, write_json
from .input_checks_bmdetr import check_model_inputs
from .modeling_bmdetr import BMDetrForMomentRetrieval
from .packages_bmdetr import needed_module
from .processing_bmdetr import BMDetrProcessor
from .weightless_encoders_bmdetr import PixelVideoEncoder

ExportFormat = Literal["onnx", "torch-export"]
FORMATS: tuple[ExportFormat, ...] = ("onnx", "torch-export")
FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
INT8_FILE, ENCODER_FILE, DESCRIPTION = "model.int8.onnx", "video_encoder.onnx", "export.json"
INPUTS = ("video_features", "video_mask", "text_features", "text_mask")
AXES = {"batch": (1, 65536), "video_len": (1, 1_000_000), "text_len": (1, 65536)}
_WIDTHS = ("video_dim", "text_dim")
LEFT_OUT = ("last_hidden_state", "encoder_last_hidden_state")
TOLERANCE = 1e-4
# (pairs, clips, tokens): single ones, what fills a usual contract, what is longer than it.
CHECKED_SHAPES = ((1, 1, 1), (1, 75, 32), (2, 3, 1), (5, 40, 7), (3, 160, 40))


class _Exportable(nn.Module):
    """The model with positional tensors in and a dictionary of tensors out."""

    def __init__(self, model: BMDetrForMomentRetrieval):
        super().__init__()
        self.model = model

    def forward(
        self, video_features: Tensor, video_mask: Tensor, text_features: Tensor, text_mask: Tensor
    ) -> dict[str, Tensor]:
        outputs = self.model(video_features, video_mask, text_features, text_mask, return_dict=True)
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor) and name not in LEFT_OUT}


def export_model(
    model: BMDetrForMomentRetrieval,
    out: str | os.PathLike,
    format: ExportFormat = "onnx",
    *,
    int8: bool = False,
    processor: BMDetrProcessor | None = None,
) -> dict[str, Any]:
    """Exports a model with dynamic numbers of pairs, clips and tokens, and compares it with the model.

    Args:
        model: Exported as it is in evaluation mode, in float32.
        out: Folder to write, as a whole or not at all.
        format: `onnx` (runs in ONNX Runtime) or `torch-export` (loads with `torch.export.load`).
        int8: Also writes `model.int8.onnx`, whose matrices are 8-bit integers; `onnx` only. It is not compared with
            the model, since rounding changes its answers: measure it on your data.
        processor: Where the answers' format is read from; one made from the model's contract when left out.

    Returns:
        What `export.json` holds, with the largest difference seen under `largest_difference`.

    Raises:
        FileExistsError: `out` is there and not empty.
        ImportError: the packages of the extra `export` are not installed.
        ValueError: unknown format, or `int8` with another format than `onnx`.
        RuntimeError: the exported model answers otherwise than the model; nothing is written.
    """
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {FORMATS}, received {format!r}")
    if int8 and format != "onnx":
        raise ValueError(f'`int8` is made from the ONNX file: pass format="onnx" with it, received {format!r}')
    if format == "onnx":
        _require_onnx()
    was_training, device, dtype = model.training, model.device, model.dtype
    model.eval()
    model.to(device="cpu", dtype=torch.float32)  # type: ignore[call-arg]
    try:
        with replacing_folder(out) as folder:
            with torch.inference_mode():
                outputs = list(_Exportable(model)(*_example(model, 2, 3, 2, torch.Generator().manual_seed(0))))
            program = _trace(model)
            file = folder / FILES[format]
            if format == "onnx":
                _write_onnx(program, file)
            else:
                torch.export.save(program, file)
            difference = largest_difference(model, _runner(file, outputs))
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"the exported model differs from the model by {difference:.2g}, more than {TOLERANCE:g}; "
                    "nothing was written. Please report this with the versions of torch and onnxruntime"
                )
            processor = processor or BMDetrProcessor(model.config.feature_contract)
            description = {
                "format": format,
                "file": FILES[format],
                "inputs": list(INPUTS),
                "outputs": outputs,
                "largest_difference": difference,
                **{name: getattr(model.config, name) for name in _WIDTHS},
                "feature_contract": processor.feature_contract,
                "prediction_format": processor.prediction_format,
                "nms_threshold": processor.nms_threshold,
                "torch": torch.__version__,
            }
            if format == "onnx":
                description["video_encoder"] = _write_video_encoder(processor, folder)
            if int8:
                description["int8_file"] = INT8_FILE
                _write_int8(file, folder / INT8_FILE)
            description["sha256"] = {path.name: _digest(path) for path in sorted(folder.iterdir())}
            write_json(folder / DESCRIPTION, description)
    finally:
        model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
        model.train(was_training)
    return description


def load_exported(folder: str | os.PathLike, *, int8: bool = False, threads: int | None = None) -> Callable[..., Any]:
    """The exported model as a function of the four inputs, tensors or arrays, that returns a dict of tensors.

    The function raises `ValueError` or `TypeError` for inputs that the model itself would refuse. Load only folders
    that you trust: a program of `torch.export` may run code, and a checksum beside a file keeps nobody from changing
    both.

    Args:
        folder: What `export_model` wrote.
        int8: Runs the 8-bit file.
        threads: Threads of ONNX Runtime; its own choice when left out.

    Raises:
        FileNotFoundError: there is no export, or no 8-bit file, in the folder.
        ValueError: the description is not of an export, or the model is not the file that was exported.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"'{folder}' holds no {DESCRIPTION}: it is no folder that `bmdetr export` wrote")
    description = _read_description(path)
    name = description.get("int8_file" if int8 else "file")
    if name is None or not (file := Path(folder) / name).is_file():
        raise FileNotFoundError(f"'{folder}' holds no {'8-bit ' * int8}model; export again{' with --int8' * int8}")
    if _digest(file) != description["sha256"].get(name):
        raise ValueError(f"'{file}' is damaged, or not the file that {DESCRIPTION} describes: export the model again")
    contract = FeatureContract.from_dict(description["feature_contract"])
    widths: Any = SimpleNamespace(feature_contract=contract, **{name: description[name] for name in _WIDTHS})
    run = _runner(file, description["outputs"], threads)

    def answer(video_features: Any, video_mask: Any, text_features: Any, text_mask: Any) -> dict[str, Tensor]:
        given = (video_features, video_mask, text_features, text_mask)
        inputs = [value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value)) for value in given]
        check_model_inputs(widths, *inputs)
        return run(*(value.float() for value in inputs))

    return answer


def _read_description(path: Path) -> dict[str, Any]:
    """What `export.json` holds.

    Raises:
        ValueError: it is not what `export_model` writes. Files elsewhere are never named by it.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not JSON: {error}") from error
    fits = (
        isinstance(description, dict)
        and description.get("file") in list(FILES.values())
        and description.get("int8_file", INT8_FILE) == INT8_FILE
        and isinstance(outputs := description.get("outputs"), list)
        and all(isinstance(name, str) for name in outputs)
        and all(isinstance(description.get(name), dict) for name in ("sha256", "feature_contract"))
        and all(type(description.get(name)) is int for name in _WIDTHS)
    )
    if not fits:
        raise ValueError(f"'{path}' is not what `bmdetr export` writes, or is of an earlier version: export again")
    return description


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def largest_difference(
    model: BMDetrForMomentRetrieval,
    exported: Callable[..., Mapping[str, Tensor]],
    shapes: tuple[tuple[int, int, int], ...] = CHECKED_SHAPES,
    seed: int = 0,
) -> float:
    """The largest difference of any output between the model and its export, on random features and masks.

    Args:
        shapes: (pairs, clips, tokens) of each batch; rows are padded to random lengths, the first one not at all.
    """
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for shape in shapes:
        inputs = _example(model, *shape, generator)
        with torch.inference_mode():
            expected = _Exportable(model)(*inputs)
        found = exported(*inputs)
        for name, value in expected.items():
            difference = (value - found[name]).abs().max().item()
            worst = difference if not difference <= worst else worst  # NaN wins
    return worst


def _example(
    model: BMDetrForMomentRetrieval, pairs: int, clips: int, tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = []
    for length, width in ((clips, model.config.video_dim), (tokens, model.config.text_dim)):
        real = torch.randint(1, length + 1, (pairs, 1), generator=generator)
        real[0] = length
        mask = (torch.arange(length) < real).float()
        features = torch.randn(pairs, length, width, generator=generator)
        parts += [nn.functional.normalize(features, dim=-1) * mask[..., None], mask]
    return parts[0], parts[1], parts[2], parts[3]


def _trace(model: BMDetrForMomentRetrieval) -> torch.export.ExportedProgram:
    batch, clips, tokens = (torch.export.Dim(name, min=low, max=high) for name, (low, high) in AXES.items())
    inputs = _example(model, 3, 20, 7, torch.Generator().manual_seed(0))
    dynamic = ({0: batch, 1: clips}, {0: batch, 1: clips}, {0: batch, 1: tokens}, {0: batch, 1: tokens})
    with torch.no_grad():
        return torch.export.export(_Exportable(model), inputs, dynamic_shapes=dynamic)


def _require_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        needed_module(name, "ONNX needs three packages: pip install onnx onnxruntime onnxscript")


def _as_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """A program as ONNX, without the exporter's notes on packages that are not needed here and on its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    names: dict[str, Any] = {"input_names": inputs, "output_names": outputs}
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False, **names)
    finally:
        logger.setLevel(level)


class _ExportableEncoder(nn.Module):
    def __init__(self, encoder: PixelVideoEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor) -> Tensor:
        return self.encoder.measure(frames)


def _write_video_encoder(processor: BMDetrProcessor, folder: Path) -> dict[str, Any] | None:
    """The encoder of frames beside the model, and how its frames are sampled; None for encoders with weights.

    Those are exported with tools of their own, and their features given to the model.
    """
    specs = processor.contract.video_encoders
    if len(specs) != 1 or specs[0]["name"] not in WEIGHTLESS_VIDEO_ENCODERS:
        return None
    encoder = cast(PixelVideoEncoder, build_video_encoder(specs[0]))
    per_clip, side = encoder.frames_per_clip, encoder.grid
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3 * per_clip, side, side, 3), dtype=torch.uint8, generator=generator)
    clips = torch.export.Dim("clips", min=1, max=AXES["video_len"][1])
    module = _ExportableEncoder(encoder)
    program = torch.export.export(module, (frames,), dynamic_shapes=({0: per_clip * clips},))
    _as_onnx(program, ["frames"], ["rows"]).save(str(folder / ENCODER_FILE))
    return {
        "file": ENCODER_FILE,
        "frames_per_clip": per_clip,
        "frame_size": [side, side],
        "interpolation": encoder.interpolation,
    }


def _write_onnx(program: torch.export.ExportedProgram, file: Path) -> None:
    import onnx

    outputs = [spec.arg.name for spec in program.graph_signature.output_specs]
    names = list(program.call_spec.out_spec.unflatten([0] * len(outputs)))
    proto = _as_onnx(program, INPUTS, names).model_proto
    video, text = (proto.graph.input[i].type.tensor_type.shape.dim for i in (0, 2))
    # The tracer's symbols by the names of the axes.
    symbols = (video[0].dim_param, video[1].dim_param, text[1].dim_param)
    renamed = dict(zip(symbols, AXES, strict=True))
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]
    onnx.save(proto, str(file))


def _write_int8(file: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The root logger is used there, to recommend a step that dynamic axes do not allow.
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(str(file), str(out), weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


def _runner(file: Path, outputs: list[str], threads: int | None = None) -> Callable[..., dict[str, Tensor]]:
    if file.suffix == ".pt2":
        program = torch.export.load(file).module()

        def run_program(*inputs: Tensor | np.ndarray) -> dict[str, Tensor]:
            with torch.inference_mode():
                return program(*(torch.as_tensor(value, dtype=torch.float32) for value in inputs))

        return run_program
    _require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run_session(*inputs: Tensor | np.ndarray) -> dict[str, Tensor]:
        feeds = {name: np.asarray(value, dtype=np.float32) for name, value in zip(INPUTS, inputs, strict=True)}
        return {name: torch.from_numpy(value) for name, value in zip(outputs, session.run(outputs, feeds), strict=True)}

    return run_session
