"""Add the tags of a schema to any causal model of Hugging Face: special tokens of its tokenizer, rows of its embedding
table and of its head. The logits of all other tokens stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from parallel_r1.answers.parser import parse
from parallel_r1.answers.schemas import DEFAULT, Schema, load_schema
from parallel_r1.answers.syntax import Tags
from parallel_r1.errors import UserError
from parallel_r1.files import whole
from parallel_r1.models.policy import Policy, load_model, load_tokenizer, save
from parallel_r1.models.tokens import encode, schema_of, set_schema, tag_ids

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Generator, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Init = Literal["mean", "random", "keep"]
"""First value of a tag's row: the mean of the rows of the tokens that spelt it; random, with the mean and deviation of
the other rows; or the row that is there already, in a table that is longer than the vocabulary."""


def sample(schema: Schema) -> str:
    """A short answer with a fork, to try a tokenizer with."""
    return "So: " + schema.write(["1 + 2 = 3", "one\nand two"], "The same.") + " It is 3."


@dataclass(frozen=True)
class Prepared:
    """The tags that a model got.

    Attributes:
        tokens: tag -> token id, of the tags that were missing.
        added: number of rows by which its tables grew; tags beyond that use rows that were unused.
    """

    tokens: dict[str, int]
    added: int


def prepare(path: str, out: Path, init: Init = "mean", seed: int = 0, schema: Schema = DEFAULT) -> Prepared | None:
    """Write a copy of a model that has the tags of a schema. Writes nothing and returns None if the model has the tags
    and the schema already.

    Args:
        path: a Hugging Face model folder or a hub id.
        out: a new folder.
        init: first values of the rows of new tags.
        seed: of random rows.
        schema: the schema that answers of the model will have.

    Raises:
        UserError: the folder exists or cannot be written, a model that cannot fork, a tokenizer that changes a text
            with tags, no rows to keep.
    """
    if out.exists():
        raise UserError("a new folder for --out", f"{out} exists", "give another name")
    from transformers import AutoConfig

    tokenizer = load_tokenizer(path)
    pieces = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in schema.tags}
    vocabulary, special = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    rows = AutoConfig.from_pretrained(path).get_text_config().vocab_size
    if all(tag in special and special[tag] < rows for tag in schema.tags) and schema_of(tokenizer) == schema:
        return None
    tags = add_tags(tokenizer, schema)
    tokens = {tag: token for tag, token in tags.ids.items() if tag not in vocabulary or token >= rows}
    model = load_model(path, "auto")
    added = max(0, 1 + max(tags.ids.values()) - rows)
    if added:
        if init == "keep":
            raise UserError(
                f"rows to keep for {', '.join(tokens)}", f"a table of {rows} rows", "use --init mean or --init random"
            )
        model.resize_token_embeddings(rows + added, mean_resizing=False)
    if init != "keep" and tokens:
        _fill(model, tokens, pieces if init == "mean" else None, rows, seed)
    with whole(out) as folder:
        save(Policy(model, tokenizer, tags), folder)
        if tag_ids(load_tokenizer(str(folder))) != tags:
            raise UserError("a tokenizer that can be saved", "other tags after loading it again", "report this model")
    return Prepared(tokens, added)


def add_tags(tokenizer: PreTrainedTokenizerBase, schema: Schema = DEFAULT) -> Tags:
    """Add the tags of a schema that a tokenizer lacks, as special tokens, and note the schema in it.

    Raises:
        UserError: the tokenizer changes a text with tags. A space behind a tag, as of SentencePiece, is no change.
    """
    from tokenizers import AddedToken

    special = tokenizer.get_added_vocab()
    new = [AddedToken(tag, normalized=False, special=True) for tag in schema.tags if tag not in special]
    tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
    set_schema(tokenizer, schema)
    tags, answer = tag_ids(tokenizer), sample(schema)
    token_ids = encode(tokenizer, tags, answer)
    text = str(tokenizer.decode(token_ids, skip_special_tokens=False))
    if text.replace(" ", "") != answer.replace(" ", "") or parse(token_ids, tags).defects:
        raise UserError("a tokenizer that a text with tags survives", repr(text), "choose another model")
    return tags


def check_schema(found: Schema, asked: str, path: str) -> None:
    """Refuse a model of another schema than the one that `model.format` of a recipe asks for.

    Args:
        found: the schema of the model.
        path: where the model was loaded from.

    Raises:
        UserError: the schema is another one, or none.
    """
    if load_schema(asked) != found:
        raise UserError(
            f"a model with the schema '{asked}', as model.format says",
            f"'{found.name}' in {path}",
            f"run parallel-r1 prepare {path} --out DIR --schema {asked}, or leave model.format out",
        )


def are_alike(policy: Policy) -> bool:
    """Whether the embeddings of the tags are equal, so that the model cannot tell one from another."""
    table = policy.model.get_input_embeddings()
    rows = table.weight.detach()[sorted(policy.tags.ids.values())].float()
    return bool((rows - rows[0]).abs().max() <= 1e-3 * rows.abs().max())


def _fill(
    model: PreTrainedModel, tokens: Mapping[str, int], pieces: Mapping[str, Sequence[int]] | None, rows: int, seed: int
) -> None:
    """Set the rows of new tags in the embedding table, and in the head if it is not tied."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = [table.weight, *([] if head.weight is table.weight else [head.weight]), getattr(head, "bias", None)]
    with torch.no_grad():
        for part in parts:
            for tag, token in tokens.items() if part is not None else ():
                part[token] = _mean(part, pieces[tag]) if pieces else _drawn(part[:rows], generator)


def _mean(part: Float[Tensor, "v d"], pieces: Sequence[int]) -> Float[Tensor, " d"]:
    """The mean of a few rows."""
    return part[list(pieces)].float().mean(0)


def _drawn(part: Float[Tensor, "v d"], generator: Generator) -> Float[Tensor, " d"]:
    """A random row, normal with the mean and deviation that the rows of a table have in every column."""
    import torch

    rows = part.float()
    return torch.normal(rows.mean(0), rows.std(0), generator=generator)
