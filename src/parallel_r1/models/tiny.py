"""New models from nothing: a tokenizer trained on texts, a Qwen3 model with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from parallel_r1.answers.schemas import DEFAULT, Schema
from parallel_r1.models.tokens import set_schema

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config


END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, digits: int = 3, schema: Schema = DEFAULT
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on texts. A run of a few digits may become one token, but never together with
    other characters; the tags of a schema and the end of text are special tokens.

    Args:
        texts: the training texts.
        vocabulary: number of tokens, with the 256 bytes and the special tokens.
        digits: most digits of a token.
        schema: the schema of the answers that the model will write.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"\d{{1,{digits}}}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, *schema.tags],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(schema.tags),
        clean_up_tokenization_spaces=False,
    )
    set_schema(trained, schema)
    return trained


def random_model(tokenizer: PreTrainedTokenizerBase, *, seed: int, **shape: int) -> PreTrainedModel:
    """A Qwen3 model with random weights for a tokenizer, in fp32 on the CPU.

    Args:
        seed: of the weights.
        shape: see `qwen3`.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    from parallel_r1.models.attention import ATTENTION

    config = qwen3(len(tokenizer), **shape)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config._attn_implementation = ATTENTION
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval()


def qwen3(
    vocabulary: int, *, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, positions: int
) -> Qwen3Config:
    """The configuration of a Qwen3 model with tied embeddings.

    Args:
        vocabulary: number of tokens.
        hidden, layers, heads, kv_heads, intermediate: the architecture; a head has `hidden / heads` dimensions.
        positions: length of the longest sequence it supports.
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
