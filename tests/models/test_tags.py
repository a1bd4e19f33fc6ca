"""Tags for models that do not have them: every kind of tokenizer and table."""

import json
import re

import pytest
import torch
from architectures import random_model
from common import ANSWER, TEMPLATE, TEXTS, byte_level, tagless
from conftest import TINY
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from parallel_r1 import models
from parallel_r1.answers.parser import parse_text
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.errors import UserError
from parallel_r1.evaluation.parity import measure
from parallel_r1.models.tags import prepare

WORDS = [part for text in TEXTS for part in re.split("|".join(DEFAULT.tags), text)]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_fallback():
    """Merges of a SentencePiece model, with bytes for what they do not know: what Llama 2 and Mistral have."""
    tokenizer = Tokenizer(kinds.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = [*SPECIAL.values(), *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", "") for text in TEXTS], trainer)
    return tokenizer


def llama():
    state = json.loads(byte_fallback().to_str())["model"]
    return LlamaTokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])


def legacy_llama():
    """The same with a space before every text, that behind a special token too."""
    tokenizer = byte_fallback()
    tokenizer.model.byte_fallback, tokenizer.model.fuse_unk = True, True
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def unigram(texts=(*WORDS, *WORDS)):
    """A SentencePiece unigram model, as T5 and its kin have, with a space before every text."""
    tokenizer = Tokenizer(kinds.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL.values()),
        unk_token="<unk>",
        initial_alphabet=[*map(chr, range(33, 127)), "\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


TOKENIZERS = {"byte-level": byte_level, "llama": llama, "legacy-llama": legacy_llama, "unigram": unigram}


def logits(model, token_ids):
    with torch.no_grad():
        return model(input_ids=token_ids).logits


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_tokenizer_gets_the_tags(tmp_path, name):
    """Each is one token wherever it stands, the text around it stays, and ids say of its structure what text says."""
    plain = TOKENIZERS[name]()
    tagless(tmp_path / "plain", plain)
    made = prepare(str(tmp_path / "plain"), tmp_path / "tagged")
    policy = models.load(str(tmp_path / "tagged"))
    assert sorted(made.tokens.values()) == list(range(len(plain), len(plain) + 6))
    assert policy.tags.ids == made.tokens
    assert policy.tokenizer.chat_template == TEMPLATE
    for tag, token in made.tokens.items():
        assert policy.encode(f"x{tag}y").count(token) == 1
    token_ids = policy.encode(ANSWER)
    text = policy.decode(token_ids)
    if name in ("byte-level", "llama"):
        assert text == ANSWER
    else:  # these write a space in front of every text, that behind a tag too
        assert text.replace(" ", "") == ANSWER.replace(" ", "")
    trace = coldstart.to_trace(coldstart.Example("x", ANSWER), policy, "isolated")
    expected = parse_text(ANSWER)
    assert trace.well_formed
    assert not expected.defects
    assert trace.forks == len(expected.fork_at)
    joins = [span for span in trace.spans if span.token_ids[0] == policy.tags.ids["</Parallel>"]]
    assert len(joins) == trace.forks
    assert all(span.token_ids == policy.tags.join and not span.sampled for span in joins)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 4, 40])
def test_new_rows_are_means_and_nothing_else_changes(tmp_path, tied, spare):
    """Whether the tables grow, have room for some of the tags, or for all."""
    plain = byte_level()
    before = tagless(tmp_path / "plain", plain, spare=spare, tie_word_embeddings=tied)
    made = prepare(str(tmp_path / "plain"), tmp_path / "tagged")
    after = models.load(str(tmp_path / "tagged")).model
    assert made.added == max(0, 6 - spare)
    assert (after.get_output_embeddings().weight is after.get_input_embeddings().weight) == tied
    for old, new in (
        (before.get_input_embeddings(), after.get_input_embeddings()),
        (before.get_output_embeddings(), after.get_output_embeddings()),
    ):
        assert len(new.weight) == len(old.weight) + made.added == after.config.vocab_size
        for tag, token in made.tokens.items():
            pieces = plain.encode(tag, add_special_tokens=False)
            assert len(pieces) > 1
            expected = torch.stack([old.weight[piece] for piece in pieces]).mean(0)
            assert torch.allclose(new.weight[token], expected, atol=1e-6)
        assert len(torch.unique(new.weight[list(made.tokens.values())], dim=0)) == 6
        others = [row for row in range(len(old.weight)) if row not in made.tokens.values()]
        assert torch.equal(new.weight[others], old.weight[others])
    token_ids = torch.randint(len(plain), (3, 20), generator=torch.Generator().manual_seed(0))
    found, expected = logits(after, token_ids)[..., : len(plain)], logits(before, token_ids)[..., : len(plain)]
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_prepared_model_forks(tmp_path):
    tagless(tmp_path / "plain", llama())
    prepare(str(tmp_path / "plain"), tmp_path / "tagged")
    (found,) = measure(models.load(str(tmp_path / "tagged")), "isolated", ["isolated"], 2, answers=2)
    assert found.max_abs <= 1e-4
    assert found.after_join is not None


def test_rows_can_be_random_or_stay(tmp_path):
    plain = byte_level()
    before = tagless(tmp_path / "plain", plain, spare=9)
    rows = {}
    for name, init, seed in (("a", "random", 0), ("b", "random", 0), ("c", "random", 1), ("d", "keep", 0)):
        made = prepare(str(tmp_path / "plain"), tmp_path / name, init, seed)
        table = models.load(str(tmp_path / name)).model.get_input_embeddings().weight
        rows[name] = table[list(made.tokens.values())]
    assert torch.equal(rows["a"], rows["b"])
    assert not torch.equal(rows["a"], rows["c"])
    assert len(torch.unique(rows["a"], dim=0)) == 6
    known = before.get_input_embeddings().weight
    assert rows["a"].std().item() == pytest.approx(known.std().item(), rel=0.2)
    assert torch.equal(rows["d"], torch.full_like(rows["d"], 0.01))
    tagless(tmp_path / "full", plain)
    with pytest.raises(UserError, match=r"rows to keep.*--init mean"):
        prepare(str(tmp_path / "full"), tmp_path / "e", "keep")
    assert not (tmp_path / "e").exists()


def test_the_type_of_the_weights_stays(tmp_path):
    plain = byte_level()
    random_model("qwen3", len(plain)).bfloat16().save_pretrained(tmp_path / "plain")
    plain.save_pretrained(tmp_path / "plain")
    prepare(str(tmp_path / "plain"), tmp_path / "tagged")
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "tagged", dtype="auto").dtype == torch.bfloat16


def test_a_model_that_has_the_tags_is_left_alone(tmp_path):
    assert prepare(str(TINY), tmp_path / "tagged") is None
    assert not (tmp_path / "tagged").exists()


def test_only_what_is_missing_is_added(tmp_path):
    """A tag that is there has a row that was learnt."""
    some = byte_level()
    some.add_special_tokens({"extra_special_tokens": ["<Path>", "</Path>"]})
    before = tagless(tmp_path / "plain", some)
    made = prepare(str(tmp_path / "plain"), tmp_path / "tagged")
    policy = models.load(str(tmp_path / "tagged"))
    assert set(made.tokens) == set(DEFAULT.tags) - {"<Path>", "</Path>"}
    kept = [policy.tags.ids[tag] for tag in ("<Path>", "</Path>")]
    assert torch.equal(policy.model.get_input_embeddings().weight[kept], before.get_input_embeddings().weight[kept])
    assert some.extra_special_tokens == ["<Path>", "</Path>"]


def test_a_tag_that_is_a_word_already_keeps_its_row(tmp_path):
    plain = unigram(TEXTS * 2)
    (word,) = [tag for tag in DEFAULT.tags if tag in plain.get_vocab()]
    before = tagless(tmp_path / "plain", plain)
    made = prepare(str(tmp_path / "plain"), tmp_path / "tagged")
    policy = models.load(str(tmp_path / "tagged"))
    token = plain.get_vocab()[word]
    assert set(made.tokens) == set(DEFAULT.tags) - {word}
    assert policy.tags.ids[word] == token
    assert policy.encode(f"x{word}y").count(token) == 1
    tables = (each.get_input_embeddings().weight for each in (before, policy.model))
    assert torch.equal(*(table[token] for table in tables))


def test_what_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(UserError, match="exists"):
        prepare(str(TINY), tmp_path)
    with pytest.raises(UserError, match="no folder"):
        prepare(str(tmp_path / "none"), tmp_path / "out")
    vocabulary = {character: index for index, character in enumerate("<>/PathrlSumye\n")}
    poor = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(kinds.BPE(vocabulary, [], unk_token="e")), eos_token="y", unk_token="e"
    )
    tagless(tmp_path / "poor", poor)
    with pytest.raises(UserError, match="survives"):
        prepare(str(tmp_path / "poor"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
