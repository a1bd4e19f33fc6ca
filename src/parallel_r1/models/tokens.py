"""What a tokenizer says: the ids of the tags, the ids that end an answer, the ids without a token, and the ids of a
prompt with the beginning of text or in a chat template."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from parallel_r1.answers.parser import pieces
from parallel_r1.answers.rollout import Message
from parallel_r1.answers.schemas import DEFAULT, ITEM, MOST_PATHS, SCHEMAS, Schema
from parallel_r1.answers.syntax import Tags, fits
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["plain", "chat"]
"""How a prompt is put to a model: as text, or as messages in the model's own chat template."""


SCHEMA = "parallel_r1_schema"
"""Where a tokenizer keeps its schema: a key of its tokenizer_config.json."""


def schema_of(tokenizer: PreTrainedTokenizerBase) -> Schema:
    """The schema that a tokenizer was prepared for, or the one whose tags it has; the default if it has none.

    Raises:
        UserError: a schema in tokenizer_config.json that is none.
    """
    kept = tokenizer.init_kwargs.get(SCHEMA)
    if kept is not None:
        return Schema.from_dict(dict(kept), "tokenizer_config.json")
    return next((schema for schema in SCHEMAS.values() if not _split(tokenizer, schema)), DEFAULT)


def set_schema(tokenizer: PreTrainedTokenizerBase, schema: Schema) -> None:
    """Keep a schema in a tokenizer, so that it is saved and loaded with it. The default needs no note."""
    tokenizer.init_kwargs.pop(SCHEMA, None)
    if schema != DEFAULT:
        tokenizer.init_kwargs[SCHEMA] = schema.to_dict()


def _split(tokenizer: PreTrainedTokenizerBase, schema: Schema) -> dict[str, list[int]]:
    """The tags of a schema that are not one token, with their ids."""
    every = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in schema.tags}
    return {tag: ids for tag, ids in every.items() if len(ids) != 1 or ids[0] == tokenizer.unk_token_id}


def tag_ids(tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = (), rows: int = 0) -> Tags:
    """The schema of a tokenizer in its ids, and those that end an answer.

    Args:
        ends: more ids that end an answer than the tokenizer's own: `generation_config.eos_token_id` of a model.
        rows: rows of the model's embedding table; those that no token has are `Tags.missing`.

    Raises:
        UserError: a tag is missing, or is split into several tokens; no id ends an answer, or a tag does.
    """
    schema = schema_of(tokenizer)
    for tag, parts in _split(tokenizer, schema).items():
        raise UserError(
            f"a tokenizer in which {tag} is one token",
            f"{len(parts)} tokens {tokenizer.convert_ids_to_tokens(parts)}",
            "add the tags with parallel-r1 prepare MODEL --out DIR",
        )
    ids = {tag: tokenizer.encode(tag, add_special_tokens=False)[0] for tag in schema.tags}
    if tokenizer.eos_token_id is None:
        raise UserError("a tokenizer with an end-of-text token", "none", "set eos_token in its tokenizer_config.json")
    close = schema.path[1]
    # Decoded behind a tag, as in answers, because many tokenizers treat the start of a text differently.
    behind = tokenizer.batch_decode([[ids[close], token] for token in range(len(tokenizer))])
    texts = [text.removeprefix(close) for text in behind]
    white = [text for text in (schema.before_path, schema.before_join, schema.gap) if text]
    blank = frozenset(token for token, text in enumerate(texts) if text and not text.strip())
    breaks = frozenset(token for token in blank if any(fits(text, texts[token]) for text in white))

    end = _template_end(tokenizer)
    plain = tokenizer.eos_token_id
    eos = frozenset({plain, *ends, *(() if end is None else (end,))})
    return Tags(
        ids=ids,
        eos=eos,
        blank=blank,
        breaks=breaks,
        end=plain,
        chat_end=plain if end is None else end,
        missing=_missing(tokenizer, rows),
        **_given(tokenizer, schema, ids, breaks),
        schema=schema,
    )


def _given(
    tokenizer: PreTrainedTokenizerBase, schema: Schema, ids: Mapping[str, int], breaks: Collection[int]
) -> dict[str, Any]:
    """The ids of what the runtime writes, by field of `Tags`, and those of the numbers of paths."""

    def given(text: str, before: str = schema.path[1]) -> tuple[int, ...]:
        """The ids of what the runtime writes behind a tag."""
        first, *behind = tokenizer.encode(before + text, add_special_tokens=False)
        # A tokenizer may put a token of its own before white space, as of SentencePiece.
        kinds = [token if token in ids.values() else "break" for token in behind if token in {*ids.values(), *breaks}]
        parts = [ids.get(part, "break") for part in schema.pattern.split(text) if part]
        if first != ids[before] or [kind for kind, _ in groupby(kinds)] != parts:
            raise UserError(
                f"a tokenizer that leaves {text!r} behind {before} as it is",
                f"{tokenizer.convert_ids_to_tokens([first, *behind])}",
                "add the tags as special tokens without lstrip and rstrip",
            )
        return tuple(behind)

    def words(text: str, before: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(before + text, add_special_tokens=False)[1:])

    heads = []
    for number in range(1, MOST_PATHS + 1) if schema.head else ():
        halves = [words(part, schema.path[0]) for part in schema.head_of(number, ITEM).split(ITEM)]
        heads.append((halves[0], halves[1] if len(halves) > 1 else ()))
    counts = {word[0]: n for n in range(1, MOST_PATHS + 1) if len(word := words(f"{n}", schema.opener)) == 1}
    return {
        "join": given(schema.join),
        "tail": given(schema.tail) if schema.tail else (),
        "stub": given(schema.stub),
        "heads": tuple(heads),
        "counts": counts,
    }


def encode(tokenizer: PreTrainedTokenizerBase, tags: Tags, text: str) -> list[int]:
    """The ids of an answer. The head of a path is cut as the runtime writes it, whatever follows."""
    if not tags.heads:
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    before, part, after_tag = "", "", False
    for piece in pieces(text, tags.schema):
        head = piece.given and not piece.is_tag and after_tag and piece.address
        part += piece.text
        after_tag = (piece.is_tag and piece.text == tags.schema.path[0]) or bool(head)
        if head:
            ids += _behind(tokenizer, before, part)
            before, part = tags.schema.path[0], ""
    return ids + _behind(tokenizer, before, part)


def _behind(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> list[int]:
    """The ids of a text behind a tag, or at the start."""
    ids = tokenizer.encode(before + text, add_special_tokens=False)
    return ids[1:] if before else ids


def _missing(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[int, ...]:
    """The ids below `rows` that no token has."""
    taken = set(tokenizer.get_vocab().values())
    return tuple(token for token in range(rows) if token not in taken)


def _template_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token with which the chat template ends an answer; None without a template, or if it writes none.
    What a template raises is said when a prompt is put into it."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    answer = "An answer."
    try:
        text = _render(tokenizer, [("user", "A question."), ("assistant", answer)], opens_answer=False)
    except (TemplateError, TypeError, ValueError):
        return None
    after = tokenizer.encode(text.rpartition(answer)[2], add_special_tokens=False)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return next((token for token in after if token in special), None)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, opens_answer: bool = True) -> str:
    chat: Any = as_chat(messages)
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opens_answer))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, form: Form = "plain", before: Sequence[Message] = ()
) -> list[int]:
    """The ids of a prompt: the same in training, evaluation and serving.

    In both forms they begin with the beginning-of-text token, once, if the tokenizer puts one before a text.

    Args:
        text: the prompt; in a chat the last message, of the user.
        before: the messages before it.

    Raises:
        UserError: messages before a plain prompt; `chat` with a tokenizer without a template; a template that raises;
            two beginnings of text.
    """
    if form == "chat":
        text = _in_template(tokenizer, [*before, ("user", text)])
    elif before:
        roles = ", ".join(role for role, _ in before)
        raise UserError(
            "one message in a plain prompt",
            f"messages before it ({roles})",
            'set prompt.form = "chat" (--form chat), or leave them out of the data',
        )
    return _with_begin(tokenizer, tokenizer.encode(text, add_special_tokens=False))


def encode_foreign(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    form: Form = "plain",
    before: Sequence[Message] = (),
    instruction: str = "",
) -> list[int]:
    """The ids of a prompt that a stranger wrote: as `encode_prompt`, but a tag or another special token in a message is
    read as the characters that it is spelled with, so that nobody can write what only the template may write.

    Args:
        instruction: our own text before the last message.
    """
    texts = [*(said for _, said in before), text]
    special = tokenizer.all_special_tokens
    if not any(token in said for token in special for said in texts):
        return encode_prompt(tokenizer, instruction + text, form, before)
    marks = [f"\ue000{number}\ue001" for number in range(len(texts))]
    messages = [(role, mark) for (role, _), mark in zip(before, marks, strict=False)]
    last = instruction + marks[-1]
    whole = _in_template(tokenizer, [*messages, ("user", last)]) if form == "chat" else last
    ids: list[int] = []
    for part in re.split("(\ue000\\d+\ue001)", whole):
        foreign = part in marks
        written = texts[marks.index(part)] if foreign else part
        ids += tokenizer(written, add_special_tokens=False, split_special_tokens=foreign).input_ids
    return _with_begin(tokenizer, ids)


def _with_begin(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The ids of a prompt after the beginning of text, once, if the tokenizer puts one before a text."""
    begin = _begin(tokenizer)
    if begin is None:
        return ids
    written = _leading(ids, begin)
    if written > 1:
        raise UserError(
            "one beginning of text before a prompt",
            f"{written} in a row ({tokenizer.convert_ids_to_tokens([begin])[0]})",
            "leave it out of the chat template or the prompt",
        )
    return ids if written else [begin, *ids]


def as_chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as `{"role": .., "content": ..}` objects, as templates, servers and data sets have them."""
    return [{"role": role, "content": text} for role, text in messages]


def read_chat(messages: Sequence[Any]) -> tuple[str, tuple[Message, ...]]:
    """The text of the last message of a chat, and the messages before it, from `{"role": .., "content": ..}` objects.

    Raises:
        UserError: a message without a role or a text, or a last one that is not of the user.
    """
    chat: list[Any] = [(each.get("role"), each.get("content")) for each in messages if isinstance(each, Mapping)]
    texts = all(isinstance(part, str) for message in chat for part in message)
    if not texts or len(chat) < max(1, len(messages)) or chat[-1][0] != "user":
        raise UserError(
            "messages with a role and a content, the last one of the user",
            f"{messages!r:.60}",
            "give [{'role': 'user', 'content': '..'}]",
        )
    return chat[-1][1], tuple(chat[:-1])


def _begin(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a tokenizer puts before every text; None if it puts none there. A tokenizer may have a
    `bos_token` that it does not put there, and models that were trained so must not read it.

    Raises:
        UserError: it puts two or more.
    """
    begin = tokenizer.bos_token_id
    if begin is None:
        return None
    count = _leading(tokenizer.encode("a"), begin)
    if count > 1:
        raise UserError(
            "a tokenizer that puts one beginning of text before a text",
            f"{count} of {tokenizer.bos_token}",
            "correct the post_processor in its tokenizer.json",
        )
    return int(begin) if count else None


def _leading(ids: Sequence[int], token: int) -> int:
    """How often a token stands at the beginning, one after the other."""
    return next((place for place, other in enumerate(ids) if other != token), len(ids))


def _in_template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            "a tokenizer with a chat template, for the prompt form chat", "none", 'set prompt.form = "plain"'
        )
    try:
        return _render(tokenizer, messages)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(role for role, _ in messages)
        raise UserError(
            f"messages that the chat template takes ({roles})",
            f"{type(error).__name__}: {str(error) or 'no message'}",
            "correct the messages or the template",
        ) from error
