"""Saving and uploading a model with all that goes with the weights: code, pipeline, processor and model card.

transformers copies into a saved checkpoint, and fetches from the Hub, every file that the model's file imports
relatively, at whatever depth and inside functions too. The pipeline and the processor are imported here for that
reason as well: wherever the model goes, they go.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import EntryNotFoundError, HTTPError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging

from .configuration_bmdetr import BMDetrConfig
from .files_bmdetr import replacing_files, scratch_folder

logger = logging.get_logger(__name__)

TASK = "temporal-grounding"
CONFIG_FILE, PROCESSOR_FILE, CARD_FILE = "config.json", "processor_config.json", "README.md"
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
# What a checkpoint consists of; optimizer states, logs and pickled arguments of a training run are no part of it.
CHECKPOINT_FILES = (
    *(CONFIG_FILE, *WEIGHT_FILES),
    *(PROCESSOR_FILE, "*_bmdetr.py", CARD_FILE),
)
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
LOCAL_PLACE = re.compile(r"[/~.\\]|[A-Za-z]:[/\\]")
_LARGE = 50_000_000  # weights: 200 MB
# Whether `from_pretrained` is to load a checkpoint completely, for what transformers calls in between.
_MEASURED: ContextVar[bool] = ContextVar("measured", default=False)
_UPLOAD_ARGUMENTS = ("repo_id", "revision", "private", "token", "commit_message", "commit_description", "create_pr")


class SharingMixin:
    """`save_pretrained` and `push_to_hub` of a model, which write all that others need to use it."""

    config: BMDetrConfig
    # Writes a model card, see `write_model_card`. The installed library sets it; code loaded from the Hub has none.
    card_writer: ClassVar[Callable[..., Any] | None] = None

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves weights, configuration, code, declaration of the pipeline, processor and model card.

        A model card, and a processor with this feature contract, that are in the folder already stay as they are. The
        files of an earlier model are replaced together: a process that dies between leaves a folder without
        config.json, never old weights beside a new configuration.

        Args:
            save_directory, is_main_process, state_dict, kwargs: As in [`PreTrainedModel.save_pretrained`].
            push_to_hub: Uploads the folder as well; `kwargs` may then have `repo_id` (the folder's name when left
                out) and the other arguments of `upload_checkpoint`.
        """
        folder = Path(save_directory)
        uploads = {name: kwargs.pop(name) for name in _UPLOAD_ARGUMENTS if push_to_hub and name in kwargs}
        if not is_main_process:  # it takes part in gathering the weights
            super().save_pretrained(folder, False, state_dict, **kwargs)  # type: ignore[misc]
            return
        declared = self.config.__dict__.get("custom_pipelines")
        self.config.custom_pipelines = pipeline_declaration()
        try:
            with replacing_files(folder, CONFIG_FILE, WEIGHT_FILES) as aside:
                super().save_pretrained(aside, True, state_dict, **kwargs)  # type: ignore[misc]
                if not has_processor(self.config, folder):
                    save_default_processor(self.config, aside)
                self._save_card(aside, folder, uploads.get("repo_id"))
        finally:
            if declared is None:
                del self.config.custom_pipelines
        if push_to_hub:
            upload_checkpoint(folder, **{"repo_id": folder.name, **uploads})

    def _save_card(self, aside: Path, folder: Path, repo_id: str | None) -> None:
        """Writes a card unless the folder has one; the beginning of this card, as a dead process leaves it, is none."""
        writer = type(self).card_writer
        if writer is None:
            return
        writer(self, aside, repo_id=repo_id)
        card, there = aside / CARD_FILE, folder / CARD_FILE
        if there.is_file() and not card.read_bytes().startswith(there.read_bytes()):
            card.unlink()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, complete: bool = True, **kwargs: Any
    ) -> Any:
        """As [`PreTrainedModel.from_pretrained`], but a checkpoint is loaded completely or refused.

        Args:
            complete: Refuses weights that are missing, left over or of another shape, since the answers of a model
                that lacks some are random. False loads what fits, to train the rest; `ignore_mismatched_sizes=True`
                and `output_loading_info=True` mean the same.

        Raises:
            ValueError: another architecture, weights that do not fit the configuration, or that are not finite.
            OSError: there is no such repository, revision or file, no right to read it, the connection broke
                (`ConnectionError`), or the weights are damaged.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        complete = complete and not wants_info and not kwargs.get("ignore_mismatched_sizes")
        if complete:
            kwargs["ignore_mismatched_sizes"] = True  # they are refused below, by name
        measured = _MEASURED.set(complete)
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
            if complete:
                require_complete(info, pretrained_model_name_or_path)
            require_finite(model, pretrained_model_name_or_path)
            return (model, info) if wants_info else model
        except SafetensorError as error:
            raise OSError(
                f"the weights (*.safetensors) of '{pretrained_model_name_or_path}' are damaged or cut off: {error}. "
                "Download them again with force_download=True, or save them again"
            ) from error
        except OSError as error:
            if isinstance(error.__cause__, HTTPError) and not isinstance(error.__cause__, OSError):
                raise ConnectionError(
                    f"the download of '{pretrained_model_name_or_path}' broke off: {error.__cause__}. Run it again"
                ) from error
            raise
        finally:
            _MEASURED.reset(measured)

    @classmethod
    def _load_pretrained_model(
        cls, model: nn.Module, state_dict: dict | None, files: list[str] | None, load_config: Any, **kwargs: Any
    ) -> Any:
        """Here transformers has the files, from a folder or the Hub, and a model that takes no memory yet."""
        if state_dict is None:
            require_about_all(model, files or [], load_config.pretrained_model_name_or_path)
        return super()._load_pretrained_model(model, state_dict, files, load_config, **kwargs)  # type: ignore[misc]

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **kwargs: Any) -> str:
        """Uploads what `save_pretrained` writes, in one commit, and returns the address of the commit.

        A model card that the repository has already stays as it is.

        Args:
            repo_id: The repository, which is made if it does not exist.
            max_shard_size: As in `save_pretrained`.
            kwargs: Other arguments of `upload_checkpoint`, such as `revision`, `private`, `token`, `commit_message`.
        """
        places = {name: kwargs[name] for name in ("revision", "private", "token") if name in kwargs}
        repo_id = open_repository(repo_id, **places)
        with scratch_folder() as folder:
            fetch_companions(folder, repo_id, kwargs.get("revision"), kwargs.get("token"))
            writer = type(self).card_writer
            if writer is not None and not (Path(folder) / CARD_FILE).exists():
                writer(self, folder, repo_id=repo_id)
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return upload_checkpoint(folder, repo_id, **kwargs)


def require_about_all(model: nn.Module, files: Sequence[str], name: str | os.PathLike) -> None:
    """Refuses files that hold less than half of the weights of a large model, unless `complete=False`.

    The rest would be made before it is found missing, by name: a configuration of a few bytes could fill the memory.

    Args:
        model: Of the configuration, on the device `meta`.
        files: Where its weights are.
        name: The checkpoint, for the message.

    Raises:
        ValueError: they hold less, or a file is not one of safetensors.
        SafetensorError: one of them is damaged.
    """
    held = 0
    for path in files:
        if not path.endswith(".safetensors"):
            raise ValueError(
                f"the weights of '{name}' are in '{Path(path).name}', and are read from *.safetensors only. Save the "
                "checkpoint again where it is trusted, with save_pretrained"
            )
        with safe_open(path, "pt") as file:
            held += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - no mapping
    stated = sum(parameter.numel() for parameter in model.parameters())
    if stated > max(2 * held, _LARGE) and _MEASURED.get():
        raise ValueError(
            f"the weights of '{name}' are not those of its config.json: it states {stated:,} of them, and the files "
            f"hold {held:,}. Save or download the checkpoint again"
        )


def require_complete(info: Mapping[str, Any], name: str | os.PathLike) -> None:
    """Raises `ValueError` unless transformers found every weight of a model, in its shape, and no other.

    Args:
        info: The loading info of `from_pretrained`.
        name: The checkpoint, for the message.
    """
    faults = []
    said = {"missing_keys": "missing", "unexpected_keys": "left over", "mismatched_keys": "of another shape"}
    for key in said:
        if names := sorted(str(entry if isinstance(entry, str) else entry[0]) for entry in info.get(key) or ()):
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            faults.append(f"{len(names)} {said[key]} ({', '.join(names[:4])}{more})")
    if faults:
        raise ValueError(
            f"the weights of '{name}' are not those of its config.json: {'; '.join(faults)}. Answers would be random. "
            "Save or download the checkpoint again; to train what is missing, load it with complete=False"
        )


def require_finite(model: nn.Module, name: str | os.PathLike) -> None:
    """Raises `ValueError` if weights are NaN or infinite."""
    bad = [
        key
        for key, value in model.state_dict().items()
        if value.is_floating_point() and not value.is_meta and not bool(value.isfinite().all())
    ]
    if bad:
        raise ValueError(
            f"weights of '{name}' are not finite (NaN or infinite): {', '.join(bad[:4])}, {len(bad)} in all. Its "
            "training diverged or the file is damaged: take an earlier checkpoint"
        )


def pipeline_declaration() -> dict[str, dict[str, Any]]:
    """The entry `custom_pipelines` of `config.json`, by which `transformers.pipeline` finds our class."""
    from .pipeline_bmdetr import MomentRetrievalPipeline as Implementation

    module = Implementation.__module__.rpartition(".")[2]
    return {TASK: {"impl": f"{module}.{Implementation.__name__}", "pt": ["AutoModel"], "type": "multimodal"}}


def save_default_processor(config: BMDetrConfig, folder: str | os.PathLike) -> None:
    """Writes a processor for the configuration's feature contract."""
    from .processing_bmdetr import BMDetrProcessor

    BMDetrProcessor(config.feature_contract).save_pretrained(folder)


def has_processor(config: BMDetrConfig, folder: str | os.PathLike) -> bool:
    """Whether a folder has a processor for the configuration's feature contract, maybe with options of its own."""
    try:
        stored = json.loads((Path(folder) / PROCESSOR_FILE).read_text(encoding="utf-8"))
        return bool(stored["feature_contract"] == config.feature_contract.to_dict())
    except (OSError, ValueError, KeyError, TypeError):  # none, or cut off
        return False


def open_repository(
    repo_id: str, *, revision: str | None = None, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Makes a repository, and a branch of it, where they do not exist; returns the full name of the repository."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def fetch_companions(folder: str | os.PathLike, repo_id: str, revision: str | None, token: str | bool | None) -> None:
    """Downloads the model card and the processor that a repository has, so that saving keeps or replaces them."""
    for name in (CARD_FILE, PROCESSOR_FILE):
        try:
            HfApi(token=token).hf_hub_download(repo_id, name, revision=revision, local_dir=Path(folder))
        except (EntryNotFoundError, RevisionNotFoundError):
            logger.debug(f"{repo_id} has no {name} yet")


def check_publishable(files: Mapping[str, Path]) -> None:
    """Refuses files, by name, that would publish an access token or a folder of this machine.

    Raises:
        ValueError: one does; the message says which and what to do.
    """
    for name, path in files.items():
        if path.suffix not in (".json", ".md", ".py"):
            continue
        if TOKEN.search(path.read_text(encoding="utf-8", errors="replace")):
            raise ValueError(
                f"'{name}' holds what looks like an access token (hf_...); remove it, and revoke the token"
            )
    config = json.loads(files["config.json"].read_text(encoding="utf-8"))
    encoders = [*(config.get("video_encoders") or ()), config.get("text_encoder") or {}]
    for encoder in (str(encoder.get("name", "")) for encoder in encoders):
        place = encoder.partition(":")[2]  # encoders without weights have none
        if place and (LOCAL_PLACE.match(place) or Path(place).is_dir()):
            raise ValueError(
                f"the feature contract names the encoder '{encoder}', a folder of this machine; name "
                "its repository on the Hub in `config.json` and `processor_config.json`, then push again"
            )


def upload_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    more_files: Sequence[str] = (),
) -> str:
    """Uploads a saved checkpoint in one commit, so that readers see all of it or nothing.

    Args:
        folder: What `save_pretrained` wrote.
        repo_id: The repository, which is made if it does not exist.
        revision: Branch to commit to, made if it does not exist; `main` when left out.
        private: Whether a new repository is private; None leaves it to the account's default.
        token: Access token; the one stored by `hf auth login` when left out.
        more_files: Names or patterns of other files in the folder to upload as well.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: there is no configuration or no weights in the folder.
        ValueError: a file holds an access token, or the feature contract names a folder of this machine.
        ConnectionError: the connection broke.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused; its message says why.
    """
    patterns = (*CHECKPOINT_FILES, *more_files)
    files = {path.name: path for pattern in patterns for path in sorted(Path(folder).glob(pattern)) if path.is_file()}
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise FileNotFoundError(
            f"'{folder}' is no saved checkpoint: it holds no config.json with *.safetensors; write one with "
            "`model.save_pretrained`"
        )
    check_publishable(files)
    try:
        repo_id = open_repository(repo_id, revision=revision, private=private, token=token)
        # `upload_folder` may split a slow upload into several commits.
        commit = HfApi(token=token).create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()],
            commit_message=commit_message or "Upload BM-DETR checkpoint",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except (HTTPError, RuntimeError) as error:
        # The client wraps what happens to large files.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) or not isinstance(cause, HTTPError):  # the Hub's own answer, or something else
            raise
        raise ConnectionError(
            f"the connection broke while uploading to {repo_id} ({cause}); all of the upload is visible there or none "
            "of it, so run it again"
        ) from error
    return commit.commit_url
