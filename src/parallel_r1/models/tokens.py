"""What a tokenizer says: the ids of the tags, the ids that end an answer, the ids without a token, and the ids of a
prompt with the beginning of text or in a chat template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from parallel_r1.answers.rollout import Message
from parallel_r1.answers.syntax import FORK_CLOSE, JOIN_TEXT, SUMMARY_GAP, SUMMARY_OPEN, TAGS, Tags, holds_gap
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["plain", "chat"]
"""How a prompt is put to a model: as text, or as messages in the model's own chat template."""


def tag_ids(tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = (), rows: int = 0) -> Tags:
    """The ids of the tags in a tokenizer, and those that end an answer.

    Args:
        ends: more ids that end an answer than the tokenizer's own: `generation_config.eos_token_id` of a model.
        rows: rows of the model's embedding table; those that no token has are `Tags.missing`.

    Raises:
        UserError: a tag is missing, or is split into several tokens; no id ends an answer, or a tag does.
    """
    ids = {}
    for tag in TAGS:
        pieces = tokenizer.encode(tag, add_special_tokens=False)
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id:
            raise UserError(
                f"a tokenizer in which {tag} is one token",
                f"{len(pieces)} tokens {tokenizer.convert_ids_to_tokens(pieces)}",
                "add the six tags with parallel-r1 prepare MODEL --out DIR",
            )
        ids[tag] = pieces[0]
    if tokenizer.eos_token_id is None:
        raise UserError("a tokenizer with an end-of-text token", "none", "set eos_token in its tokenizer_config.json")
    # Decoded behind a tag, as in answers, because many tokenizers treat the start of a text differently.
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
    end = _template_end(tokenizer)
    plain = tokenizer.eos_token_id
    eos = frozenset({plain, *ends, *(() if end is None else (end,))})
    return Tags(ids, tuple(gap), eos, blank, breaks, plain, plain if end is None else end, _missing(tokenizer, rows))


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
    ids = tokenizer.encode(text, add_special_tokens=False)
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
