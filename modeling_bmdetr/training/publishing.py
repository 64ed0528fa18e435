"""What a trained model is saved and pushed with: its code, its processor, its card and its figures."""

import shutil
from pathlib import Path

from ..cards import write_model_card
from ..files_bmdetr import naming_failed_writes, write_json
from ..processing_bmdetr import BMDetrProcessor
from ..saving_bmdetr import CARD_FILE, PROCESSOR_FILE
from .checkpointing import CheckpointingTrainer
from .record import training_record


class PublishingTrainer(CheckpointingTrainer):
    """A Trainer whose folders hold all that `from_pretrained` and a reader need."""

    processor: BMDetrProcessor

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, its code, its processor and its card, ready for `from_pretrained`.

        Raises:
            OSError: writing failed, as on a full disk.
        """
        folder = output_dir or str(self.args.output_dir)
        with naming_failed_writes(folder):
            if self.args.should_save:
                self.processor.save_pretrained(folder)
            super().save_model(folder, _internal_call)

    def create_model_card(  # type: ignore[override]
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        dataset: str | dict[str, str] | None = None,
    ) -> None:
        """Writes `README.md`, with the metrics of the weights as they are now, and its figures as `results.json`.

        Args:
            language, license, tags: Entries of the card's header.
            model_name: Named in the card's examples where no repository is known.
            dataset: Name of the data, or a dict with `name`, `id` and `split` of the evaluated rows.
        """
        if not self.is_world_process_zero():
            return
        record = training_record(self, dataset)
        folder = Path(str(self.args.output_dir))
        write_model_card(
            self.accelerator.unwrap_model(self.model),
            folder,
            record,
            repo_id=getattr(self, "hub_model_id", None) or model_name,
            license=license,
            language=language,
            tags=[tags] if isinstance(tags, str) else tags or (),
        )
        write_json(folder / "results.json", record)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes code, processor and card too; the Trainer takes weights and configuration from a checkpoint alone."""
        if self._writes_checkpoint:
            return  # pushed when it is at its place
        if self.is_world_process_zero():
            for pattern in ("*_bmdetr.py", PROCESSOR_FILE, CARD_FILE):
                for path in Path(checkpoint_folder).glob(pattern):
                    shutil.copy(path, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)
