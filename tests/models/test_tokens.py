"""What a model reads: the beginning of text, chat templates, the ends of an answer, and ids that no token has."""

import json
from dataclasses import replace

import pytest
import torch
from architectures import random_model
from common import byte_level
from conftest import small_model
from tokenizers import processors

import parallel_r1 as pr
from parallel_r1 import models
from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.coldstart.ask_self import Own
from parallel_r1.coldstart.examples import Example, read_examples, to_trace
from parallel_r1.coldstart.journal import Ask
from parallel_r1.errors import UserError
from parallel_r1.evaluation.parity import measure
from parallel_r1.generation.rollouts import answer
from parallel_r1.models.policy import Policy
from parallel_r1.models.tokens import encode_prompt, read_chat, tag_ids
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.batch import collate
from parallel_r1.training.loops import run_rl, run_sft
from parallel_r1.training.sample import Sample
from parallel_r1.training.settings import RL, SFT

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHORT = {"paths": 2, "budget": {"critical_path": 20, "path": 8, "total": 40, "forks": 1}}


def tokenizer(template=None, begins=0, special=("<|end|>", "<|user|>", "<|system|>", "<|assistant|>")):
    """A tokenizer with the tags, with a chat template or with a beginning of text before every text."""
    made = byte_level()
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": [*DEFAULT.tags, *special]})
    if begins:
        begin = " ".join(["<s>"] * begins)
        made._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[("<s>", made.bos_token_id)]
        )
    made.chat_template = template
    return made


def policy_of(made, rows=0, ends=None, likely=()):
    """A random policy; `likely` ids are drawn most of the time."""
    model = small_model(made) if not rows else random_model("qwen3", rows, layers=1)
    if ends is not None:
        model.generation_config.eos_token_id = ends
    if likely:
        head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=True)
        with torch.no_grad():
            head.weight.copy_(model.get_output_embeddings().weight)
            head.bias.zero_()
            head.bias[list(likely)] = 12.0
        model.set_output_embeddings(head)
    return Policy(model, made, models.tags_of(made, model))


def prompts_of(policy, prompt, problem=("Use 3, 5, 7, 9 to make 24.\n", ())):
    """The ids that SFT, RL, evaluation and self-teaching read for one problem."""
    text, before = problem
    kinds = {"sft": to_trace(Example(text, "x", before=before), policy, "isolated", prompt).prompt_ids}
    asked = Problem(f"{EASY.name}/3, 5, 7, 9/24", text, "24", EASY.name, before=before)
    sampling = pr.Sampling(**SHORT)
    (drawn,) = answer(policy, EASY, [asked], 1, sampling, 0, prompt=prompt)
    kinds["evaluation and rl"] = drawn.trace.prompt_ids
    taken = []
    own = Own(policy, "x", sampling, 0, pr.Engine(), prompt)
    own.ask([Ask(asked, asked.prompt, 0)], lambda response: taken.append(response) or True)
    assert taken[0].prompt_tokens == len(drawn.trace.prompt_ids)
    return kinds


@pytest.mark.parametrize("begins", [0, 1])
def test_one_beginning_of_text_in_every_prompt_where_the_tokenizer_puts_one(begins):
    made = tokenizer(begins=begins)
    policy = policy_of(made)
    for name, ids in prompts_of(policy, Prompt(instruction="Think.\n")).items():
        assert list(ids) == [made.bos_token_id] * begins + policy.encode("Think.\nUse 3, 5, 7, 9 to make 24.\n"), name
    (drawn,) = pr.generate(policy, "Hello", **SHORT)
    assert drawn.trace.prompt_ids.count(made.bos_token_id) == begins
    assert encode_prompt(made, "<s>Hello") == [made.bos_token_id, *policy.encode("Hello")]


def test_a_prompt_in_the_models_own_template_with_all_messages():
    made = tokenizer(CHAT)
    policy = policy_of(made)
    prompt = Prompt(form="chat", instruction="Think. ")
    asked = ("Use 3.\n", (("system", "You count."), ("user", "Hi"), ("assistant", "Hello")))
    text = "<|system|>You count.<|end|>\n<|user|>Hi<|end|>\n<|assistant|>Hello<|end|>\n<|user|>Think. Use 3.\n<|end|>\n"
    for name, ids in prompts_of(policy, prompt, asked).items():
        assert policy.tokenizer.decode(ids) == text + "<|assistant|>", name
    messages = [{"role": "system", "content": "You count."}, {"role": "user", "content": "Hi"}]
    (drawn,) = pr.generate(policy, messages, form="chat", **SHORT)
    assert (
        policy.tokenizer.decode(drawn.trace.prompt_ids)
        == "<|system|>You count.<|end|>\n<|user|>Hi<|end|>\n<|assistant|>"
    )


@pytest.mark.parametrize("begins", [0, 1])
@pytest.mark.parametrize("written", ["", "{{ bos_token }}"])
def test_a_template_may_write_the_beginning_of_text_or_leave_it_to_the_tokenizer(begins, written):
    made = tokenizer(written + CHAT, begins)
    ids = encode_prompt(made, "Hi", "chat")
    assert ids.count(made.bos_token_id) == (1 if begins or written else 0)
    assert made.decode(ids).endswith("<|user|>Hi<|end|>\n<|assistant|>")


@pytest.mark.parametrize(
    ("template", "begins", "form", "before", "said"),
    [
        (None, 0, "chat", (), r"a chat template, for the prompt form chat; found none; set prompt.form = \"plain\""),
        (None, 0, "plain", (("system", "x"),), r"one message in a plain prompt; found messages before it \(system\)"),
        ("{{ raise_exception('no system here') }}", 0, "chat", (), "the chat template takes .*no system here"),
        ("{{ messages[9].content }}", 0, "chat", (), r"the chat template takes \(user\); found UndefinedError"),
        (None, 2, "plain", (), "one beginning of text before a text; found 2 of <s>"),
        ("{{ bos_token }}{{ bos_token }}" + CHAT, 1, "chat", (), "one beginning of text before a prompt; found 2 in a"),
    ],
)
def test_a_prompt_that_cannot_be_put_is_one_line(template, begins, form, before, said):
    with pytest.raises(UserError, match=said) as caught:
        encode_prompt(tokenizer(template, begins), "Hi", form, before)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [[], [{"role": "user"}], [{"role": "assistant", "content": "x"}], ["x"]])
def test_a_chat_needs_a_last_message_of_the_user(wrong):
    with pytest.raises(UserError, match="a role and a content, the last one of the user"):
        read_chat(wrong)


def test_messages_of_a_file_are_all_read_or_refused(tmp_path):
    chat = [
        {"from": "system", "value": "You count."},
        {"from": "human", "value": "What is 1 + 1?"},
        {"from": "gpt", "value": "2"},
    ]
    rows = [{"prompt": chat, "answer": "2", "split": split} for split in ("train", "test")]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{tmp_path / 'chat.jsonl'}@plain")
    problem = next(task.problems("test", 0))
    assert problem.before == (("system", "You count."),)
    assert "What is 1 + 1?" in problem.prompt
    policy = policy_of(tokenizer(CHAT))
    with pytest.raises(UserError, match="one message in a plain prompt"):
        answer(policy, task, [problem], 1, pr.Sampling(**SHORT), 0)
    (drawn,) = answer(policy, task, [problem], 1, pr.Sampling(**SHORT), 0, prompt=Prompt(form="chat"))
    assert policy.tokenizer.decode(drawn.trace.prompt_ids).startswith("<|system|>You count.<|end|>\n<|user|>")
    (tmp_path / "sft.jsonl").write_text(json.dumps({"prompt": chat[:2], "text": "2"}))
    (example,) = read_examples(tmp_path / "sft.jsonl")
    assert (example.prompt, example.before) == ("What is 1 + 1?", (("system", "You count."),))


# Ends


def test_an_answer_ends_at_any_end_of_the_generation_config():
    made = tokenizer()
    other = made.convert_tokens_to_ids("<|end|>")
    policy = policy_of(made, ends=[made.eos_token_id, other], likely=[other])
    drawn = pr.generate(policy, "Hello", samples=20, **SHORT)
    ended = [each for each in drawn if each.trace.token_ids[-1] == other]
    assert len(ended) >= 15
    assert all(each.trace.finish == "stop" and "<|end|>" not in each.text for each in ended)
    assert all(other not in each.trace.trunk_ids[:-1] for each in drawn)


def test_sft_appends_the_end_of_the_tokenizer_or_of_the_template():
    made = tokenizer(CHAT)
    end = made.convert_tokens_to_ids("<|end|>")
    policy = policy_of(made, ends=[made.eos_token_id, made.convert_tokens_to_ids("<|user|>")])
    assert policy.tags.eos == {made.eos_token_id, made.convert_tokens_to_ids("<|user|>"), end}
    plain, chat = (to_trace(Example("Hi", "x"), policy, "isolated", Prompt(form=form)) for form in ("plain", "chat"))
    assert plain.token_ids == (*policy.encode("x"), made.eos_token_id)
    assert chat.token_ids == (*policy.encode("x"), end)
    assert tag_ids(tokenizer("{{ messages[0].content }}")).chat_end == made.eos_token_id


def test_an_end_that_pads_too_is_learnt():
    """Padding is told by its place and not by its id."""
    policy = policy_of(tokenizer())
    assert (
        collate(
            [Sample(to_trace(Example("Hi", text), policy, "isolated")) for text in ("x", "long")],
            "causal",
            pad_id=policy.tags.end,
        ).sampled.sum()
        == 2 + len(policy.encode("long")) + 1
    )
    stage = SFT(kind="sft", steps=40, batch=2, data={"file": "x"}, optimizer={"lr": 1e-2})
    for _ in run_sft(policy, stage, 0, examples=[Example("Hi", "x"), Example("Hi", "xyz xyz xyz")]):
        pass
    drawn = pr.generate(policy, "Hi", samples=10, temperature=0.5, **SHORT)
    assert {each.trace.finish for each in drawn} == {"stop"}


def test_two_ends_of_which_one_is_a_tag_are_one_line(tmp_path):
    made = tokenizer()
    with pytest.raises(UserError, match="ends of an answer that are no tags; found </Path> among them"):
        policy_of(made, ends=[made.eos_token_id, made.convert_tokens_to_ids("</Path>")])
    made.save_pretrained(tmp_path)
    model = random_model("qwen3", len(made))
    model.generation_config.eos_token_id = [made.eos_token_id, made.convert_tokens_to_ids("<Summary>")]
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="found <Summary> among them; correct eos_token"):
        models.load(str(tmp_path))


# Ids without a token


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 3}, {"temperature": 0.0}])
def test_rows_without_a_token_are_never_drawn(sampling):
    made = tokenizer()
    unused = range(len(made), len(made) + 64)
    policy = policy_of(made, rows=len(made) + 64, likely=unused)
    assert policy.tags.missing == tuple(unused)
    drawn = pr.generate(policy, "Hello", samples=20, **SHORT, **sampling)
    assert max(token for each in drawn for token in each.trace.token_ids) < len(made)


def test_rows_without_a_token_have_no_probability_for_sampler_and_scorer_alike():
    made = tokenizer()
    policy = policy_of(made, rows=len(made) + 64, likely=range(len(made), len(made) + 64))
    for sampler, scorer in (("isolated", "isolated"), ("causal_join", "replay"), ("sequential", "causal")):
        (result,) = measure(policy, sampler, [scorer], 3)
        assert result.max_abs <= 1e-4
    blind = replace(policy, tags=replace(policy.tags, missing=()))
    losses = {}
    for name, each in (("masked", policy), ("blind", blind)):
        stage = SFT(kind="sft", steps=1, batch=1, data={"file": "x"}, optimizer={"lr": 1e-9})
        losses[name] = next(run_sft(each, stage, 0, examples=[Example("Hi", "xyz")])).metrics["loss"]
    assert losses["blind"] > losses["masked"] + 5
    stage = RL(kind="rl", task=EASY.name, steps=1, problems=2, group=2, sampling=SHORT, algorithm={"entropy": 0.01})
    assert next(run_rl(policy, stage, 0)).metrics["mismatch_max"] <= 1e-4
