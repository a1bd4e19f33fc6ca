"""Give any causal model of Hugging Face the six tags: special tokens of its tokenizer, rows of its embedding table and
of its head. Nothing that it says without them changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from parallel_r1.answers.parser import parse
from parallel_r1.answers.syntax import TAGS, Tags, fork_text
from parallel_r1.errors import UserError
from parallel_r1.files import whole
from parallel_r1.models.policy import Policy, load_model, load_tokenizer, save, tag_ids

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Init = Literal["mean", "random", "keep"]
"""What a tag's row is at first: the mean of the rows of its text's pieces; drawn as the other rows are spread; or what
stands there already, in a table that is longer than the vocabulary."""
SAMPLE = "So: " + fork_text(["1 + 2 = 3", "one\nand two"], "The same.") + " It is 3."


@dataclass(frozen=True)
class Prepared:
    """What a model was given.

    Attributes:
        tokens: tag -> token, of the tags that it did not have.
        added: rows by which its tables grew; other tags have rows that nothing used.
    """

    tokens: dict[str, int]
    added: int


def prepare(path: str, out: Path, init: Init = "mean", seed: int = 0) -> Prepared | None:
    """Write a model folder that has the six tags; None, and nothing written, if the model has them already.

    Args:
        path: a Hugging Face model folder or a hub id.
        out: a new folder.
        init: what the rows of new tags are at first.
        seed: of random rows.

    Raises:
        UserError: the folder exists or cannot be written, a model that forks do not know, a tokenizer that does not
            keep tags or text, no rows to keep.
    """
    if out.exists():
        raise UserError("a new folder for --out", f"{out} exists", "give another name")
    from transformers import AutoConfig

    tokenizer = load_tokenizer(path)
    pieces = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in TAGS}
    known, special = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    rows = AutoConfig.from_pretrained(path).get_text_config().vocab_size
    if all(tag in special and special[tag] < rows for tag in TAGS):
        return None
    tags = add_tags(tokenizer)
    tokens = {tag: token for tag, token in tags.ids.items() if tag not in known or token >= rows}
    model = load_model(path, "auto")
    added = max(0, 1 + max(tags.ids.values()) - rows)
    if added:
        if init == "keep":
            raise UserError(
                f"rows to keep for {', '.join(tokens)}", f"a table of {rows} rows", "use --init mean or --init random"
            )
        model.resize_token_embeddings(rows + added, mean_resizing=False)
    if init != "keep":
        _fill(model, tokens, pieces if init == "mean" else None, rows, seed)
    with whole(out) as folder:
        save(Policy(model, tokenizer, tags), folder)
        if tag_ids(load_tokenizer(str(folder))) != tags:
            raise UserError("a tokenizer that can be saved", "other tags after loading it again", "report this model")
    return Prepared(tokens, added)


def add_tags(tokenizer: PreTrainedTokenizerBase) -> Tags:
    """Add the tags that a tokenizer lacks, as special tokens.

    Raises:
        UserError: a text with tags does not survive the tokenizer. SentencePiece may write a space behind a tag.
    """
    from tokenizers import AddedToken

    special = tokenizer.get_added_vocab()
    new = [AddedToken(tag, normalized=False, special=True) for tag in TAGS if tag not in special]
    tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
    tags = tag_ids(tokenizer)
    token_ids = tokenizer.encode(SAMPLE, add_special_tokens=False)
    text = str(tokenizer.decode(token_ids, skip_special_tokens=False))
    if text.replace(" ", "") != SAMPLE.replace(" ", "") or parse(token_ids, tags).defects:
        raise UserError("a tokenizer that a text with tags survives", repr(text), "choose another model")
    return tags


def _fill(
    model: PreTrainedModel, tokens: Mapping[str, int], pieces: Mapping[str, Sequence[int]] | None, rows: int, seed: int
) -> None:
    """Set the rows of new tags, in the embedding table and in a head of its own."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = [table.weight, *([] if head.weight is table.weight else [head.weight]), getattr(head, "bias", None)]
    with torch.no_grad():
        for part in parts:
            for tag, token in tokens.items() if part is not None else ():
                part[token] = _mean(part, pieces[tag]) if pieces else _drawn(part[:rows], generator)


def _mean(part: Tensor, pieces: Sequence[int]) -> Tensor:
    return part[list(pieces)].float().mean(0)


def _drawn(part: Tensor, generator: Generator) -> Tensor:
    """A row drawn as the rows of a table are spread, number by number."""
    import torch

    known = part.float()
    return torch.normal(known.mean(0), known.std(0), generator=generator)
