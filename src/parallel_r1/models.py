"""Hugging Face models and tokenizers, with the six tags as tokens. No transformer of our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from parallel_r1.config import LoRA, Sampling
from parallel_r1.errors import UserError
from parallel_r1.trace import FORK_CLOSE, JOIN_TEXT, SUMMARY_OPEN, TAGS, Tags

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config
    from transformers.utils.quantization_config import QuantizationConfigMixin

END_OF_TEXT = "<|endoftext|>"


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
    breaks = frozenset(token for token in blank if "\n" in texts[token])
    first, *newline, last = tokenizer.encode(JOIN_TEXT, add_special_tokens=False)
    if (first, last) != (ids[FORK_CLOSE], ids[SUMMARY_OPEN]) or not breaks.intersection(newline):
        raise UserError(
            "a tokenizer that leaves a line break between tags alone",
            f"{tokenizer.convert_ids_to_tokens([first, *newline, last])}",
            "add the tags as special tokens without lstrip and rstrip",
        )
    return Tags(ids, tuple(newline), frozenset([tokenizer.eos_token_id]), blank, breaks)


def check_vocabulary(tags: Tags, rows: int, path: str) -> None:
    """Refuse tags for which a model with so many embeddings has none."""
    last = max(*tags.ids.values(), *tags.newline, *tags.eos)
    if last >= rows:
        raise UserError(
            f"an embedding for every tag and the end of text in '{path}'",
            f"token {last} and {rows} embeddings",
            "add the six tags with parallel-r1 prepare MODEL --out DIR",
        )


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


def check_attention(attention: str) -> None:
    """Refuse attention implementations that would ignore or misread the mask of a fork."""
    if attention != "sdpa":
        raise UserError(
            "the attention implementation 'sdpa', which respects a fork's mask",
            f"'{attention}', which ignores or misreads it",
            "leave model.attention at 'sdpa'",
        )


def check_model(model: PreTrainedModel) -> None:
    """Refuse models whose attention differs from plain causal attention in a way that forks do not know."""
    config = model.config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UserError(
            "layers with full or sliding attention", f"{', '.join(sorted(unknown))}", "choose another model"
        )
    scaled = [name for name in ("logit_scale", "logits_scaling") if getattr(config, name, 1) not in (1, None)]
    if scaled:
        raise UserError("logits as the head gives them", f"{scaled[0]} in its config.json", "choose another model")
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        raise UserError("a softmax over the keys alone", "attention sinks", "choose another model")
    if getattr(config, "attention_dropout", 0):
        raise UserError(
            "attention without dropout: what is sampled is what is scored",
            f"attention_dropout {config.attention_dropout}",
            "set attention_dropout to 0 in the model's config.json",
        )
    if not hasattr(config, "rope_parameters") and not hasattr(config, "rope_theta"):
        raise UserError(
            "a model with rotary positions",
            f"model type '{config.model_type}' without them",
            "choose a model such as Qwen3, Llama or Mistral",
        )


def positions(config: PreTrainedConfig) -> int | None:
    """How many positions a model knows; None if its configuration does not say."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found


def check_length(policy: Policy, prompt: int, sampling: Sampling) -> None:
    """Refuse a prompt that leaves no room for its answer in the positions that the model knows."""
    answer = sampling.reach
    most = positions(policy.model.config)
    if most is not None and prompt + answer > most:
        raise UserError(
            f"a prompt of at most {max(0, most - answer)} tokens: the model knows {most} positions and an answer may "
            f"reach over {answer}",
            f"{prompt} tokens",
            "shorten the prompt or lower the budget",
        )


def _check_folder(path: str, file: str) -> None:
    """A local path must be a model folder; anything that looks like a hub id is left to transformers."""
    folder = Path(path)
    looks_local = path.startswith((".", "/", "~")) or folder.exists() or path.count("/") != 1
    if looks_local and not (folder / file).is_file():
        found = f"folder {path} without it" if folder.is_dir() else f"no folder {path}"
        raise UserError(f"a Hugging Face model folder with {file}", found, "check the path")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on texts. Numbers of up to three digits may become one token and never merge
    with what stands beside them; the six tags and the end of text are special tokens.

    Args:
        texts: what to learn the merges from.
        vocabulary: how many tokens, the 256 bytes and the special tokens included.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, *TAGS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(TAGS),
        clean_up_tokenization_spaces=False,
    )


def random_model(tokenizer: PreTrainedTokenizerBase, *, seed: int, **shape: int) -> PreTrainedModel:
    """A Qwen3 model with random weights for a tokenizer.

    Args:
        seed: of the weights.
        shape: see `qwen3`.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    config = qwen3(len(tokenizer), **shape)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval()


def qwen3(
    vocabulary: int, *, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, positions: int
) -> Qwen3Config:
    """The configuration of a Qwen3 model with tied embeddings.

    Args:
        vocabulary: how many tokens.
        hidden, layers, heads, kv_heads, intermediate: the architecture; a head has `hidden / heads` dimensions.
        positions: the longest sequence it is meant for.
    """
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
    )


def save(policy: Policy, folder: Path) -> None:
    """Write an ordinary Hugging Face model folder."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def parameter_count(model: PreTrainedModel) -> int:
    """Trainable and frozen parameters, tied ones counted once."""
    return int(model.num_parameters())
