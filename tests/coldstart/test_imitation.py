import json
from itertools import islice

import oracles
import pytest
import torch
from conftest import SHARED, needs_data

from parallel_r1 import models
from parallel_r1.answers.convert import repair
from parallel_r1.answers.parser import parse_text
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.coldstart.examples import Example, examples, plain_texts, read_examples, to_trace
from parallel_r1.coldstart.settings import Data
from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.datasets.rows import read_file, write_file
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.batch import collate
from parallel_r1.training.loops import run_sft
from parallel_r1.training.sample import Sample
from parallel_r1.training.settings import SFT, Optimizer

TEACHER = Data(tasks={"countdown-easy": 1.0}, parallel=0.7, paths=3, tries=2)
FORKED = "<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>\nFinal Answer: 1"


def write(tmp_path, *rows):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_the_teacher_writes_the_share_that_was_asked_for():
    found = list(islice(examples(TEACHER, 0), 400))
    forked = [parse_text(each.text) for each in found if "<Parallel>" in each.text]
    assert 0.6 < len(forked) / len(found) < 0.8
    assert all(each.paths == [3] and not each.defects for each in forked)
    assert found == list(islice(examples(TEACHER, 0), 400))


def test_a_trace_ends_with_the_end_of_text(frozen):
    trace = to_trace(next(examples(TEACHER, 0)), frozen, "isolated")
    assert trace.token_ids[-1] in frozen.tags.eos
    assert trace.spans[-1].sampled
    assert trace.well_formed


def test_an_instruction_is_text_before_the_prompt(frozen):
    example = next(examples(TEACHER, 0))
    trace = to_trace(example, frozen, "isolated", Prompt(instruction="Open <Parallel>.\n"))
    assert frozen.decode(trace.prompt_ids) == "Open <Parallel>.\n" + example.prompt
    assert trace.spans == to_trace(example, frozen, "isolated").spans


def test_tags_in_a_prompt_are_text(frozen):
    named = to_trace(Example("Open <Parallel><Path> and close </Summary>:", FORKED), frozen, "isolated")
    plain = to_trace(Example("Think:", FORKED), frozen, "isolated")
    assert named.spans == plain.spans
    assert named.well_formed
    assert len(set(named.prompt_ids) & set(frozen.tags.ids.values())) == 3


def test_rehearsal_teaches_nothing_about_forking(frozen):
    data = TEACHER.model_copy(update={"rehearse": {"countdown-hard": 1.0}, "rehearsal": 0.4})
    found = list(islice(examples(data, 0), 300))
    rehearsed = [each for each in found if each.rehearsal]
    assert 0.3 < len(rehearsed) / len(found) < 0.5
    for each in rehearsed:
        trace = to_trace(each, frozen, "isolated")
        assert trace.forks == 0
        assert (len(trace.spans[0].token_ids), trace.spans[0].sampled) == (1, False)
        assert all(span.sampled for span in trace.spans[1:])
        assert frozen.decode(trace.token_ids) == each.text


def test_a_file_is_read_epoch_after_epoch(tmp_path):
    rows = [{"prompt": str(index), "text": FORKED} for index in range(5)]
    path = write(tmp_path, *rows)
    found = [each.prompt for each in islice(examples(Data(file=str(path)), 0), 15)]
    for epoch in (found[:5], found[5:10], found[10:]):
        assert sorted(epoch) == list("01234")
    assert found[:5] != found[5:10] or found[5:10] != found[10:]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{oops\n", "t.jsonl:2: Expecting property name"),
        ({"prompt": "x"}, "without a text in 'text' (its columns: 'prompt')"),
        ({"question": "x", "answer": "y"}, "without a text in 'prompt' (its columns: 'question', 'answer')"),
        ({"prompt": 3, "text": "y"}, "without a text in 'prompt'"),
        ({"prompt": "x", "text": None}, "without a text in 'text'"),
        ({}, "its columns: none"),
        ("[1]\n", "t.jsonl:2: a list"),
        ("3\n", "t.jsonl:2: a int"),
        ("\n\n3\n", "t.jsonl:4: a int"),
        ({"prompt": "x", "text": "<Path>"}, "parallel-r1 data repair"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, said):
    path = write(tmp_path, {"prompt": "x", "text": FORKED}, row)
    with pytest.raises(UserError, match=r"t\.jsonl:[24]|row 2 of .*t\.jsonl") as caught:
        read_examples(path)
    assert said in str(caught.value)


def test_parquet_is_read_like_jsonl(tmp_path):
    rows = [{"prompt": str(index), "text": FORKED, "id": index} for index in range(5)]
    write_file(tmp_path / "t.parquet", rows)
    assert read_examples(tmp_path / "t.parquet") == read_examples(write(tmp_path, *rows))


def test_a_parquet_file_that_is_cut_is_one_line(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1\x15\x04\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a whole parquet file; found .*t\.parquet: "):
        read_examples(tmp_path / "t.parquet")


def test_empty_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_examples(tmp_path / "none")
    with pytest.raises(UserError, match="empty"):
        read_examples(write(tmp_path))


def test_tokenizer_texts_hold_no_tag():
    texts = list(plain_texts(TEACHER, 0, 20))
    assert texts
    assert not any(tag in text for tag in DEFAULT.tags for text in texts)


# Real traces


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The shared traces as a file to imitate, and a small policy whose tokenizer was trained on their texts."""
    rows = read_file(SHARED / "parallel_gsm8k_traces.parquet")
    prompt = load_task("gsm8k").instruction
    path = tmp_path_factory.mktemp("real") / "traces.jsonl"
    texts = [(prompt.format(problem=row["problem"]), repair(row["trace"])[0]) for row in rows]
    whole = [{"prompt": prompt, "text": text} for prompt, text in texts if not parse_text(text).defects]
    write_file(path, whole)
    tokenizer = models.train_tokenizer((row["prompt"] + row["text"] for row in whole), 1024)
    model = models.random_model(
        tokenizer, hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, positions=4096, seed=0
    )
    return path, len(rows), Policy(model, tokenizer, models.tag_ids(tokenizer))


@needs_data
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_masks_and_positions_of_real_traces_equal_the_oracle(real, every):
    path, count, policy = real
    found = read_examples(path)
    assert len(found) > 0.9 * count
    for example in found[::every]:
        trace = to_trace(example, policy, "isolated")
        assert trace.well_formed
        assert trace.forks == len(parse_text(example.text).paths)
        by_token = [()] * len(trace.prompt_ids) + [address for address, n in trace.runs for _ in range(n)]
        batch = collate([Sample(trace)], "isolated")
        # The oracle looks at every pair of tokens: at all of the positions, and at the mask of every 41st token.
        assert batch.positions[0].tolist() == oracles.positions(by_token)
        mask = batch.sight.mask()[0, 0]
        for place in range(0, len(by_token), 41):
            assert mask[place].tolist() == [oracles.sees(by_token, place, j) for j in range(len(by_token))]


@pytest.mark.slow
@needs_data
def test_real_traces_are_learnt_from(real):
    path, _, policy = real
    stage = SFT(
        kind="sft",
        data=Data(file=str(path)),
        steps=20,
        batch=4,
        optimizer=Optimizer(lr=3e-3),
        scorer="isolated",
        sampling=Sampling(sampler="isolated"),
    )
    losses = [update.metrics["loss"] for update in run_sft(policy, stage, 0)]
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
