import pytest
import torch
from conftest import TINY
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config
from transformers import Qwen2ForCausalLM as Qwen2

from parallel_r1 import models
from parallel_r1.errors import UserError
from parallel_r1.models import Policy
from parallel_r1.parity import measure
from parallel_r1.trace import TAGS


def test_the_shipped_model_is_small_and_has_the_tags(tiny):
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 4_000_000
    assert 0.8e6 < models.parameter_count(tiny.model) < 1.2e6
    assert tiny.model.config.model_type == "qwen3"
    assert (TINY / "model.safetensors").is_file()
    assert len({tiny.tags.ids[tag] for tag in TAGS}) == 6


@pytest.mark.parametrize(
    "text", ["Use 3, 5, 7 to make 22.\n", "né 東 \x00 <Path>x</Path>", "  two  spaces\n\n", "<Parallel>"]
)
def test_any_text_survives_the_tokenizer(tiny, text):
    assert tiny.decode(tiny.encode(text)) == text


def test_a_model_without_tags_is_refused(tmp_path, tokenizer):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: index for index, character in enumerate("<>/PathrlSumye\n")}
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, [])), eos_token="e", unk_token="\n")
    with pytest.raises(UserError, match=r"<Parallel> is one token.*add the six tags"):
        models.tag_ids(plain)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        models.load(str(tmp_path / "none"))
    with pytest.raises(UserError, match="without it"):
        models.load(str(tmp_path))
    with pytest.raises(UserError, match="sdpa"):
        models.load(str(TINY), attention="eager")


def architectures(vocabulary):
    shape = dict(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
    )
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa")),
        "qwen2": Qwen2(Qwen2Config(**shape, attn_implementation="sdpa")),
        "mistral": MistralForCausalLM(MistralConfig(**shape, sliding_window=None, attn_implementation="sdpa")),
    }


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_other_architectures_are_exact_too(tokenizer, tags, name):
    torch.manual_seed(0)
    model = architectures(len(tokenizer))[name].eval()
    models.check_model(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    found = measure(Policy(model, tokenizer, tags), "isolated", "isolated", 3)
    assert found.max_abs <= 1e-4
    assert found.forks >= 2


def test_sliding_windows_are_refused(tokenizer):
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        sliding_window=8,
    )
    with pytest.raises(UserError, match="sliding window"):
        models.check_model(MistralForCausalLM(config))


def test_a_prompt_over_the_budget_is_refused(tiny):
    models.check_length(tiny, 10, 100)
    with pytest.raises(UserError, match="at most 412 tokens"):
        models.check_length(tiny, 413, 100)
