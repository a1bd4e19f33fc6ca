"""What a recipe may say, as pydantic models: each table, its keys, their ranges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from parallel_r1.errors import UserError, nearest
from parallel_r1.trace import EXACT_SCORER, TAGS, Sampler, Scorer

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Architecture(Section):
    """A Qwen3 model with random weights and a tokenizer trained on the tasks' own text."""

    hidden: Count = 128
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2
    intermediate: Count = 448
    positions: Count = 512
    vocabulary: Annotated[int, Field(ge=263)] = 512


class LoRA(Section):
    """What learns beside frozen weights: two small matrices for each linear layer, and the rows of the six tags.

    Attributes:
        rank: of what a layer gains.
        alpha: what a layer gains is multiplied by alpha / rank.
        dropout: must stay 0.
        targets: names of linear layers, such as "q_proj", or "all-linear": all but the head.
        quantise: how the frozen linear layers are held: as they are, or in 4 bits ("nf4": QLoRA).

    Source: LoRA (arXiv 2106.09685), QLoRA (arXiv 2305.14314).
    """

    rank: Count = 16
    alpha: Count = 32
    dropout: float = 0.0
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    quantise: Literal["none", "nf4"] = "none"

    @field_validator("dropout")
    @classmethod
    def no_dropout(cls, dropout: float) -> float:
        if dropout:
            raise ValueError("dropout must be 0: what is sampled is what is scored")
        return dropout


class Model(Section):
    """Where the policy comes from: a folder or hub id, or an architecture to start from nothing.

    Attributes:
        lora: what learns beside frozen weights; all weights learn if None.
    """

    path: str | None = None
    architecture: Architecture | None = None
    attention: str = "sdpa"
    lora: LoRA | None = None

    @model_validator(mode="after")
    def one_source(self) -> Model:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("exactly one of path and architecture must be given")
        if self.lora is not None and self.path is None:
            raise ValueError("lora needs path: random weights must learn themselves")
        return self


class Budget(Section):
    """What one answer may spend, in tokens with the given ones counted, and in forks. The prompt is not counted.

    Attributes:
        total: over all paths.
        critical_path: over the longest chain of tokens drawn one after the other: latency.
        path: one path, its tags included.
        forks: how many forks an answer may open; a later `<Parallel>` is plain text and the trunk goes on.
        depth: how deep forks may nest; 1 means no fork inside a path.
    """

    total: Count = 512
    critical_path: Count = 256
    path: Count = 128
    forks: Annotated[int, Field(ge=0)] = 4
    depth: Count = 1


class Sampling(Section):
    """How answers are drawn.

    Attributes:
        sampler: what a fork and a join do.
        paths: of every fork.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens that together have this probability.
        min_p: keep tokens that are at least this share as probable as the most probable one.
        stop: texts that end the answer once the trunk holds one; the text stays.
        rows: answers that are drawn at once.
        memory: tokens whose keys and values may be held at once; None for no limit. When it is full, the answer that
            came last waits and is read again later.
        compile: whether the model runs through `torch.compile` while it draws: faster steps after half a minute or
            more, and a C++ compiler is needed.
        instruction: text before every prompt; tags in it are text.
        final: where the final answer may stand: in the trunk, or, if it gives none, in a path too.
        budget: of each answer.
    """

    sampler: Sampler = "isolated"
    paths: Annotated[int, Field(ge=1, le=64)] = 2
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Share = 0.0
    stop: tuple[str, ...] = ()
    rows: Count = 256
    memory: Count | None = None
    compile: bool = False
    instruction: str = ""
    final: Literal["trunk", "anywhere"] = "trunk"
    budget: Budget = Budget()

    @property
    def opens_forks(self) -> bool:
        """Whether an answer may have a well-formed fork, of two paths at least."""
        return self.sampler != "sequential" and self.paths > 1 and self.budget.forks > 0

    @property
    def filters(self) -> bool:
        """Whether tokens are left out that the raw policy might draw."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def reach(self) -> int:
        """The positions that an answer may take: those of its critical path, or of all its text where a join reads it
        again."""
        return self.budget.total if self.sampler == "causal_join" else min(self.budget.critical_path, self.budget.total)

    @field_validator("stop")
    @classmethod
    def stops_are_text(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text or any(tag in text for tag in TAGS) for text in stop):
            raise ValueError("a stop text must not be empty and must not hold one of the six tags")
        return stop

    @model_validator(mode="after")
    def memory_holds_an_answer(self) -> Sampling:
        if self.memory is not None and self.memory <= self.budget.total:
            raise ValueError(f"memory ({self.memory}) must be above budget.total ({self.budget.total})")
        return self


class Optimizer(Section):
    """AdamW with a warm-up and a constant or cosine learning rate.

    Attributes:
        embeddings: which rows of the embedding table learn: all, or those of tokens that are used in the batch. The
            softmax pushes every row a little, and Adam makes a large step of a small push, so training on a narrow
            task wrecks the rows of tokens that it never uses; `used` keeps them.
        carry: go on with the moments that the optimiser of the stage before ended with, instead of none.
        tags: the rows of the six tags, in the embedding table and in a head of its own, learn at this multiple of `lr`.
            At a rate that suits a pretrained model, rows that are new to it hardly move.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] = 1.0
    embeddings: Literal["all", "used"] = "all"
    carry: bool = False
    tags: Annotated[float, Field(gt=0)] = 1.0


class Data(Section):
    """What supervised fine-tuning reads: a file of answers, or what a procedural teacher writes.

    Attributes:
        file: JSONL or parquet with the columns prompt and text; the other fields are then unused.
        tasks: task -> weight, for the teacher.
        rehearse: task -> weight, for what the base could do already; in the share `rehearsal` of the examples. These
            are sequential answers whose first token, the choice between forking and not, is given: they keep the
            skill and teach nothing about when to fork.
        parallel: the share of the other answers that have a fork.
        paths: paths of a fork.
        tries: how many tries the teacher makes in a path.
        sequential_tries: and in an answer without a fork, or after a fork in which no path succeeded.
    """

    file: str | None = None
    tasks: dict[str, Annotated[float, Field(gt=0)]] = {}
    rehearse: dict[str, Annotated[float, Field(gt=0)]] = {}
    rehearsal: Share = 0.0
    parallel: Share = 0.0
    paths: Annotated[int, Field(ge=2)] = 2
    tries: Count = 3
    sequential_tries: Count = 5

    @model_validator(mode="after")
    def one_source(self) -> Data:
        if (self.file is None) == (not self.tasks):
            raise ValueError("exactly one of file and tasks must be given")
        if (self.rehearsal > 0) != bool(self.rehearse):
            raise ValueError("rehearse and rehearsal go together: tasks, and the share of examples from them")
        return self


class Stop(Section):
    """When a stage ends before its last step: a figure of validation problems has not risen for a while. The weights
    that it hands over are those of the best validation.

    Attributes:
        task: whose validation problems; an rl stage's own if left out.
        metric: what should rise: mean@k, pass@k or the parallel ratio.
        every: steps between two validations; the last step of the stage has one too.
        patience: the stage ends after so many validations in a row without a gain.
        min_gain: how much more than at the last gain is a gain.
        problems, samples: how many problems a validation has, and answers to each.
    """

    task: str
    metric: Literal["mean", "passed", "parallel_ratio"] = "mean"
    every: Count = 20
    patience: Count = 3
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    problems: Count = 100
    samples: Count = 4


class Stage(Section):
    """What every stage has.

    Attributes:
        start: the stage whose weights it continues, or "base"; the stage before it if None.
        steps: optimiser updates.
        stop: when it ends earlier; never if None.
        hold_back: whether the validation problems of its tasks are kept out of training. All stages of a recipe with a
            stop rule do.
        scorer: how answers are scored; must be the sampler's exact partner unless `allow_mismatch`.
        micro_tokens: padded tokens of one forward pass.
        packing: lay several answers side by side in a row, so that short ones need no padding and those to one prompt
            share it. The loss is the same.
        precision: of forward passes in training; weights and optimiser stay fp32.
        recompute: compute activations again in the backward pass instead of keeping them: less memory, a third more
            time.
    """

    start: str | None = None
    steps: Count
    stop: Stop | None = None
    hold_back: bool = False
    scorer: Scorer = "isolated"
    allow_mismatch: bool = False
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    micro_tokens: Count = 4096
    packing: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the scorer repeats what the sampler did."""
        return EXACT_SCORER[self.sampling.sampler] == self.scorer

    @model_validator(mode="after")
    def exact(self) -> Stage:
        if not self.is_exact and not self.allow_mismatch:
            exact = EXACT_SCORER[self.sampling.sampler]
            raise ValueError(
                f"sampler '{self.sampling.sampler}' needs scorer '{exact}', found '{self.scorer}'; "
                "set allow_mismatch = true to study the difference"
            )
        return self


class SFT(Stage):
    """Supervised fine-tuning."""

    kind: Literal["sft"]
    data: Data
    batch: Count = 64


class GRPO(Section):
    """Group-relative policy optimisation and its family.

    Attributes:
        clip_low, clip_high: the ratio of new to old probability counts within [1 - clip_low, 1 + clip_high].
        std: what divides rewards less their group's mean: the standard deviation of the group's rewards (GRPO), of the
            whole batch's (PAPO), or nothing (Dr. GRPO).
        average: what the loss is a mean over: all sampled tokens (DAPO), answers, each a mean over its own tokens
            (GRPO as first published), or a constant, all that `budget.total` allows (Dr. GRPO).
        minibatches: optimiser updates from one batch of answers; 1 is strictly on-policy.
        refill: how often problems whose answers all earned the same are replaced by new ones before a step goes on
            with what it has (DAPO's dynamic sampling).
        truncated: whether answers that were cut by the budget are learnt from.
        kl: weight of the divergence from the policy that the stage started from (k3 estimate); 0 keeps no reference.
        entropy: weight of a bonus for the entropy of what was sampled from.
        correction: the largest importance weight of a token whose sampler is not the scorer's exact partner; no
            weights if None.
    """

    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    std: Literal["group", "batch", "none"] = "group"
    average: Literal["tokens", "answers", "constant"] = "tokens"
    minibatches: Count = 1
    refill: Annotated[int, Field(ge=0)] = 0
    truncated: bool = True
    kl: Annotated[float, Field(ge=0)] = 0.0
    entropy: Annotated[float, Field(ge=0)] = 0.0
    correction: Annotated[float, Field(gt=0)] | None = None


class RL(Stage):
    """Reinforcement learning. `steps` counts batches of answers; each makes `grpo.minibatches` updates."""

    kind: Literal["rl"]
    task: str
    reward: str = "accuracy()"
    problems: Count = 16
    group: Annotated[int, Field(ge=2)] = 8
    grpo: GRPO = GRPO()
    save_rollouts_every: Count = 10

    @model_validator(mode="before")
    @classmethod
    def stops_by_its_own_task(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("stop"), dict) and "task" in given:
            return {**given, "stop": {"task": given["task"], **given["stop"]}}
        return given

    @model_validator(mode="after")
    def explores(self) -> RL:
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature must be above 0: greedy answers to a problem are all the same")
        if self.grpo.kl and self.sampling.filters:
            raise ValueError(
                "grpo.kl needs top_k, top_p and min_p off: what one policy filters out diverges without end"
            )
        if self.problems % self.grpo.minibatches:
            raise ValueError(
                f"problems ({self.problems}) must be divisible by grpo.minibatches ({self.grpo.minibatches})"
            )
        return self


class Evaluation(Section):
    """How every stage is measured on held-out problems.

    Attributes:
        problems: of every task; all of a task that has fewer.
        samples: answers to each problem, for all tasks or task by task: the k of mean@k.
    """

    tasks: tuple[str, ...] = ()
    problems: Annotated[int, Field(ge=1, le=100_000)] = 200
    samples: Count | dict[str, Count] = 8
    seed: int = 1234

    @model_validator(mode="after")
    def samples_of_every_task(self) -> Evaluation:
        if isinstance(self.samples, dict) and set(self.samples) != set(self.tasks):
            raise ValueError(f"samples must name every task: {', '.join(self.tasks)}")
        return self

    def samples_of(self, task: str) -> int:
        """Answers to each problem of a task."""
        return self.samples[task] if isinstance(self.samples, dict) else self.samples


class Processes(Section):
    """How a run is spread over processes. The result is the same with any number of them, up to rounding.

    Attributes:
        count: how many; another number than were started is an error.
        shard: whether each keeps a share of the weights that learn, their gradients and moments (FSDP2), instead of
            all of them (DDP).
    """

    count: Count = 1
    shard: bool = False


class Recipe(Section):
    """A whole run: a model, stages in order, and what to measure.

    Attributes:
        compare: pairs (stage, against) that the table compares, paired by problem.
        save_every: steps of a stage after which all that is needed to go on is saved; it is with every validation too.
        tracking: what is told the metrics beside metrics.jsonl.
    """

    name: str
    seed: int = 0
    model: Model
    evaluation: Evaluation = Evaluation()
    stages: dict[str, Annotated[SFT | RL, Field(discriminator="kind")]] = Field(min_length=1)
    compare: tuple[tuple[str, str], ...] = ()
    save_every: Count = 20
    tracking: tuple[Tracker, ...] = ()
    processes: Processes = Processes()

    @model_validator(mode="before")
    @classmethod
    def hold_back_what_stop_rules_need(cls, given: Any) -> Any:
        stages = given.get("stages") if isinstance(given, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
            return given
        held = {"hold_back": True} if any("stop" in stage for stage in stages.values()) else {}
        return {**given, "stages": {name: {**held, **stage} for name, stage in stages.items()}}

    @model_validator(mode="after")
    def validation_is_held_back(self) -> Recipe:
        trained = [name for name, stage in self.stages.items() if not stage.hold_back]
        if trained and any(stage.stop for stage in self.stages.values()):
            raise ValueError(
                f"stages.{trained[0]}.hold_back must be true: a stop rule is judged by problems that no stage trains on"
            )
        return self

    @model_validator(mode="after")
    def adapters_are_whole(self) -> Recipe:
        if self.model.lora is not None and self.processes.shard:
            raise ValueError("processes.shard divides what learns, and an adapter is small: leave one of them out")
        return self

    @model_validator(mode="after")
    def known_starts(self) -> Recipe:
        seen = ["base"]
        for name, stage in self.stages.items():
            if name == "base":
                raise ValueError("no stage may be called 'base': that is the model itself")
            if stage.start is not None and stage.start not in seen:
                raise ValueError(f"stages.{name}.start is '{stage.start}'; {nearest(stage.start, seen)}")
            seen.append(name)
        for name in (name for pair in self.compare for name in pair):
            if name not in seen:
                raise ValueError(f"compare names '{name}'; {nearest(name, seen)}")
        return self

    def start_of(self, name: str) -> str:
        """The stage whose weights a stage continues."""
        names = ["base", *self.stages]
        return self.stages[name].start or names[names.index(name) - 1]

    @property
    def carried(self) -> set[str]:
        """The stages whose moments a later stage goes on with."""
        return {self.start_of(name) for name, stage in self.stages.items() if stage.optimizer.carry}

    def only(self, kind: Literal["sft", "rl"]) -> Recipe:
        """The recipe with its stages of one kind. One that continued a stage of another kind begins where that did.

        Raises:
            UserError: it has none of this kind.
        """
        kept = {name: stage for name, stage in self.stages.items() if stage.kind == kind}
        if not kept:
            raise UserError(
                f"a recipe with a stage of kind '{kind}'",
                f"stages {', '.join(self.stages)}",
                "use `train`, or another recipe",
            )
        known = {"base", *kept}
        chain = {}
        for name, stage in kept.items():
            start = self.start_of(name)
            while start not in known:
                start = self.start_of(start)
            chain[name] = stage.model_copy(update={"start": start})
        pairs = tuple(pair for pair in self.compare if known.issuperset(pair))
        return self.model_copy(update={"stages": chain, "compare": pairs})
