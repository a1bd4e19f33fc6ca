"""What several files of tests use."""

import shutil
from dataclasses import replace
from functools import partial
from itertools import islice

import processes
import torch
from architectures import random_model
from conftest import ROOT, TINY
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast, Qwen3Config

from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.answers.trace import TRUNK, Span, Trace
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.generation.distribution import RAW
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.models.tags import sample
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.training.batch import collate, score
from parallel_r1.training.sample import Sample


def force_forks(tags, every=7, lengths=(4, 6, 5)):
    """Open a fork after every few trunk tokens, and inside paths; close paths at different lengths."""

    def force(answer, address, size):
        if address == TRUNK:
            return (
                tags.ids["<Parallel>"]
                if size % every == every - 2
                else (tags.ids["</Summary>"] if size % every == every - 4 else None)
            )
        if size == 2 and len(address) < 3 and address[-1][1] == 0:
            return tags.ids["<Parallel>"]
        return tags.ids["</Path>"] if size > lengths[address[-1][1] % len(lengths)] else None

    return force


def judged(problem, correct, *, key="", task="countdown-easy", total=10, forked=False, sampler="isolated"):
    """A judged answer, made without a model; with `forked` it has a fork of two paths."""
    addresses = [TRUNK, ((0, 0),), ((0, 1),), TRUNK] if forked else [TRUNK]
    spans = tuple(Span((1,), address, True) for address in addresses)
    texts = ("x",) * len(spans)
    problem = Problem(problem, f"{problem}\n", "1", task, key)
    return Rollout(problem, Trace((1,), spans, sampler=sampler), texts, correct, total // 2, total)


def prompts_of(policy, count):
    return [policy.encode("Use 3, 5, 7 to make 22.\n" * (1 + index % 3)) for index in range(count)]


def samples(traces):
    return [Sample(trace) for trace in traces]


def mismatch(policy, traces, scorer="isolated", shape=RAW):
    batch = collate(samples(traces), scorer)
    with torch.no_grad():
        return (score(policy.model, batch, shape) - batch.behaviour).abs()[batch.sampled].max().item()


STAGE = {
    "kind": "sft",
    "steps": 2,
    "batch": 6,
    "data": {"tasks": {"countdown-easy": 1.0}, "parallel": 0.7, "paths": 3},
    "optimizer": {"lr": 1e-3},
}


def examples(policy, stage, count=6):
    source = coldstart.examples(stage.data, 0)
    return [coldstart.to_trace(each, policy, stage.sampling.sampler) for each in islice(source, count)]


RECIPE = """
name = "small"
compare = [["rl", "sft"]]
[model.architecture]
hidden = 16
layers = 1
heads = 2
kv_heads = 1
intermediate = 32
vocabulary = 300
[evaluation]
tasks = ["countdown-easy"]
problems = 3
samples = 2
[defaults.sampling]
paths = 2
budget = { critical_path = 30, path = 10, total = 60, forks = 2 }
[stages.sft]
kind = "sft"
steps = 2
batch = 4
data = { tasks = { countdown-easy = 1.0 }, parallel = 0.5 }
[stages.rl]
kind = "rl"
task = "countdown-easy"
steps = 3
problems = 2
group = 4
reward = "alternate(accuracy(), bonus(0.2), period=2, second=1)"
algorithm = { minibatches = 2 }
save_rollouts_every = 2
[stages.plain]
kind = "rl"
start = "base"
task = "countdown-easy"
steps = 1
problems = 2
group = 2
scorer = "causal"
sampling = { sampler = "sequential" }
"""


def make(tmp_path, *overrides):
    (tmp_path / "small.toml").write_text(RECIPE)
    return load_recipe(tmp_path / "small.toml", list(overrides))


def run(*words, stdin=None, cwd=ROOT, width="100"):
    return processes.command([str(word) for word in words], stdin, cwd, width, 600)


def refused(*words, said, **more):
    """The command fails with one clear line and exit code 2."""
    done = run(*words, **more)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: expected ")
    for each in (said,) if isinstance(said, str) else said:
        assert each in done.stderr
    return done


RECIPES = sorted(
    path for path in ROOT.glob("recipes/**/*.toml") if path.stem != "study" and "[stages." in path.read_text()
)


SHAPES = {
    "qwen3-4b": (2560, 36, 32, 9728, 141e9),
    "qwen3-0.6b-lora": (1024, 28, 16, 3072, 24e9),
}
"""Hidden size, layers, heads, intermediate size of the models, and the memory of the GPU that their recipes name."""


REAL = sorted(path for path in RECIPES if path.parent.name in SHAPES)


def folder_of(name, tmp_path, layers=None):
    """A model folder without weights, with the tokenizer of another."""
    for file in TINY.glob("*token*"):
        shutil.copy(file, tmp_path)
    hidden, known, heads, intermediate, _ = SHAPES[name]
    Qwen3Config(
        vocab_size=151936,
        hidden_size=hidden,
        num_hidden_layers=layers or known,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=intermediate,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    return f"model.path={tmp_path}"


ANSWER = (
    "First  think. <Parallel><Path> 3 + 4 = 7</Path><Path>7\n\n= 7</Path></Parallel>\n<Summary>Both say 7.</Summary>\n"
    "<Parallel><Path>a <Parallel><Path>b</Path><Path>c</Path></Parallel>\n<Summary>d</Summary></Path>"
    "<Path>e</Path></Parallel>\n<Summary>f</Summary> Final Answer: 7"
)


TEXTS = [ANSWER, sample(DEFAULT), "".join(map(chr, range(32, 127))), "the sum of 3 and 4 is 7, and so on.\n" * 9]


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def byte_level():
    """As Qwen and Llama 3 have."""
    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def tagless(path, tokenizer, architecture="qwen3", spare=0, **changes):
    """A model folder without tags, with rows to spare."""
    tokenizer.chat_template = TEMPLATE
    model = random_model(architecture, len(tokenizer) + spare, **changes)
    if spare:
        with torch.no_grad():  # rows that nothing ever used are all the same
            model.get_input_embeddings().weight[len(tokenizer) :] = 0.01
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


MICRO = """
name = "micro"
against = "plain"
seeds = [0, 1]

[budgets]
short = ["defaults.sampling.budget={ critical_path = 20, path = 6, total = 40, forks = 1 }"]

[recipe]
save_every = 1
[recipe.model]
path = "MODEL"
[recipe.evaluation]
tasks = ["countdown-easy"]
problems = 4
samples = 2
[recipe.defaults]
problems = 2
group = 2
sampling = { paths = 2 }
[recipe.stages.cold]
kind = "sft"
steps = 2
batch = 4
data = { tasks = { countdown-easy = 1.0 }, parallel = 0.5 }
[recipe.stages.hard]
kind = "rl"
task = "countdown-easy"
steps = 2

[rows.base]
part = "plain-ones"
set = ["defaults.sampling.sampler=sequential", "defaults.scorer=causal"]
[rows.plain]
part = "plain-ones"
like = "base"
stages = ["hard"]
[rows.taught]
part = "forking"
stages = ["cold"]
[rows.forked]
part = "forking"
stages = ["cold", "hard"]
"""


SMALL = """
name = "x"
[model]
path = "models/tiny-base"
[defaults.sampling]
paths = 3
budget = { path = 20 }
[stages.one]
kind = "sft"
steps = 3
data = { tasks = { countdown-easy = 1 } }
[stages.two]
kind = "rl"
task = "countdown-hard"
steps = 2
scorer = "causal"
sampling = { sampler = "sequential" }
"""


def write(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    return tmp_path / "r.toml"


def draw(
    engine, tags, prompts, sampling, seed, *, first=0, policy_version=0, on_token=None, force=None, decode=None, **more
):
    """One answer per prompt by a scheduler over an engine, answer i with the seed "seed/i". `force` is called with the
    number of the answer before what a request's own is called with; `more` are the scheduler's rows and memory."""
    scheduler = Scheduler(engine, tags, **{"rows": 256, **more}, on_token=on_token, decode=decode)
    answers = [
        submit(scheduler, prompt, sampling, f"{seed}/{index}", force) for index, prompt in enumerate(prompts, first)
    ]
    while scheduler.is_busy:
        scheduler.step()
    return [answer.trace(policy_version) for answer in answers]


class Forcing:
    """A generator that forces tokens; see `draw`."""

    def __init__(self, policy, force):
        self.inner, self.force = make_generator(policy), force

    @property
    def counts(self):
        return self.inner.counts

    @counts.setter
    def counts(self, counts):
        self.inner.counts = counts

    def traces(self, requests):
        forces = [lambda address, size, at=at: self.force(at, address, size) for at in range(len(requests))]
        return self.inner.traces([replace(one, force=force) for one, force in zip(requests, forces, strict=True)])


def submit(scheduler, prompt, sampling, seed, force=None):
    """Put one answer into a scheduler's queue."""
    answer = scheduler.submit(Request(prompt, sampling, str(seed)))
    if force is not None:
        answer.force = partial(force, answer.index)
    return answer
