"""Hugging Face models and tokenizers, with the six tags as tokens. No transformer of our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from parallel_r1.answers.syntax import FORK_CLOSE, JOIN_TEXT, SUMMARY_GAP, SUMMARY_OPEN, TAGS, Tags, holds_gap
from parallel_r1.errors import UserError
from parallel_r1.models.settings import LoRA

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

from parallel_r1.models.checks import check_attention, check_model, check_vocabulary


@dataclass
class Policy:
    """A model with its tokenizer and tags.

    Attributes:
        version: the number of updates it has seen.
        lora: what of the model learns beside frozen weights; all of it if None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tags: Tags
    version: int = 0
    lora: LoRA | None = None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, tags included, the end of text left out."""
        kept = [token for token in token_ids if token not in self.tags.eos]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))


def tag_ids(tokenizer: PreTrainedTokenizerBase) -> Tags:
    """The ids of the tags in a tokenizer.

    Raises:
        UserError: a tag is missing, or is split into several tokens.
    """
    ids = {}
    for tag in TAGS:
        found = tokenizer.encode(tag, add_special_tokens=False)
        if len(found) != 1 or found[0] == tokenizer.unk_token_id:
            raise UserError(
                f"a tokenizer in which {tag} is one token",
                f"{len(found)} tokens {tokenizer.convert_ids_to_tokens(found)}",
                "add the six tags with parallel-r1 prepare MODEL --out DIR",
            )
        ids[tag] = found[0]
    if tokenizer.eos_token_id is None:
        raise UserError("a tokenizer with an end-of-text token", "none", "set eos_token in its tokenizer_config.json")
    # Behind a tag, as they stand in answers: many tokenizers treat the start of a text in a way of its own.
    behind = tokenizer.batch_decode([[ids[FORK_CLOSE], token] for token in range(len(tokenizer))])
    texts = [text.removeprefix(FORK_CLOSE) for text in behind]
    blank = frozenset(token for token, text in enumerate(texts) if text and not text.strip())
    breaks = frozenset(token for token in blank if holds_gap(texts[token]))
    first, *gap, last = tokenizer.encode(JOIN_TEXT, add_special_tokens=False)
    if (first, last) != (ids[FORK_CLOSE], ids[SUMMARY_OPEN]) or (SUMMARY_GAP and not breaks.intersection(gap)):
        raise UserError(
            f"a tokenizer that leaves {SUMMARY_GAP!r} between tags alone",
            f"{tokenizer.convert_ids_to_tokens([first, *gap, last])}",
            "add the tags as special tokens without lstrip and rstrip",
        )
    return Tags(ids, tuple(gap), frozenset([tokenizer.eos_token_id]), blank, breaks)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub."""
    from transformers import AutoTokenizer

    _check_folder(path, "tokenizer_config.json")
    with _loading(path):
        return AutoTokenizer.from_pretrained(path)


def load(path: str, *, attention: str = "sdpa", quantisation: QuantizationConfigMixin | None = None) -> Policy:
    """Load a causal model with its tokenizer, ready for forks.

    Args:
        path: a Hugging Face model folder or a hub id.
        attention: the attention implementation of plain answers, `sdpa`; an architecture without it gets `eager`.
        quantisation: how linear layers are held; in fp32 if None.

    Raises:
        UserError: no such folder, a file that is missing or cut off, another attention implementation, attention that
            forks do not know, missing tags.
    """
    check_attention(attention)
    tokenizer = load_tokenizer(path)
    tags = tag_ids(tokenizer)
    import torch

    model = load_model(path, torch.float32, quantisation)
    check_vocabulary(tags, model.config.get_text_config().vocab_size, path)
    return Policy(model, tokenizer, tags)


def load_model(
    path: str, dtype: torch.dtype | Literal["auto"], quantisation: QuantizationConfigMixin | None = None
) -> PreTrainedModel:
    """Load a causal model alone; see `load`.

    Args:
        dtype: of its weights; "auto" for that in which they are saved.
    """
    from transformers import AutoModelForCausalLM

    # No attention by name: transformers takes SDPA where the architecture has it.
    with _loading(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, quantization_config=quantisation, output_loading_info=True
        )
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:  # transformers makes such weights up
        raise UserError(
            "weights for the whole model", f"'{path}' without {len(missing)}, such as {missing[0]}", "download it again"
        )
    check_model(model)
    return model.eval()


@contextmanager
def _loading(path: str) -> Iterator[None]:
    """Say in one line what could not be loaded: a model that is not there, or not all of it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            "a whole Hugging Face model folder, or a hub id that can be reached",
            f"'{path}' ({str(error).splitlines()[0]})",
            "check the path, or the network; download again what was broken off",
        ) from error


def _check_folder(path: str, file: str) -> None:
    """A local path must be a model folder; anything that looks like a hub id is left to transformers."""
    folder = Path(path)
    looks_local = path.startswith((".", "/", "~")) or folder.exists() or path.count("/") != 1
    if looks_local and not (folder / file).is_file():
        found = f"folder {path} without it" if folder.is_dir() else f"no folder {path}"
        raise UserError(f"a Hugging Face model folder with {file}", found, "check the path")


def save(policy: Policy, folder: Path) -> None:
    """Write an ordinary Hugging Face model folder."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def parameter_count(model: PreTrainedModel) -> int:
    """Trainable and frozen parameters, tied ones counted once."""
    return int(model.num_parameters())
