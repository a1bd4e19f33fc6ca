"""What clients send: the requests of OpenAI's API, with an object `parallel` for what it has no word for."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from parallel_r1.errors import UserError
from parallel_r1.files import lone_surrogate
from parallel_r1.generation.live import check_request
from parallel_r1.generation.request import Request
from parallel_r1.generation.rollouts import check_length
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.generation.training_card import TrainingCard
from parallel_r1.models.policy import Policy
from parallel_r1.models.tokens import encode_foreign
from parallel_r1.serve.engine import Order
from parallel_r1.settings import Count

Output = Literal["final", "trunk", "trace"]
Mode = Literal["auto", "parallel", "sequential"]
MOST = 2**31 - 1


class Strict(BaseModel):
    """Refuses fields that it does not know, and numbers that are none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Limits(Strict):
    """Budgets of one answer, in tokens, beside `max_tokens` and `latency`."""

    total: Annotated[int, Field(ge=1, le=MOST)] | None = None
    path: Annotated[int, Field(ge=1, le=MOST)] | None = None
    depth: Annotated[int, Field(ge=1, le=8)] | None = None


class Parallel(Strict):
    """How an answer may fork, and what the client gets of it.

    Attributes:
        output: "final" is the text outside all paths, without tags; "trunk" the same with tags; "trace" everything in
            reading order, with tags.
        branches: stream every branch as it grows, each delta with its branch.
        mode: "auto" lets the model decide whether to fork; "parallel" opens a fork at once; "sequential" opens none.
        paths: number of paths of every fork.
        forks: most forks.
        latency: most tokens on the critical path.
        budget: further limits.
        spare, straggler, agree: which paths are closed early; see `Branches`.
    """

    output: Output = "final"
    branches: bool = False
    mode: Mode = "auto"
    paths: Annotated[int, Field(ge=1, le=64)] | None = None
    forks: Annotated[int, Field(ge=0, le=64)] | None = None
    latency: Annotated[int, Field(ge=1, le=MOST)] | None = None
    budget: Limits = Limits()
    spare: Annotated[int, Field(ge=0, le=64)] | None = None
    straggler: Annotated[float, Field(ge=1)] | None = None
    agree: Annotated[int, Field(ge=1, le=64)] | None = None


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(Strict):
    """What requests for a chat and for a completion have in common. Fields of OpenAI's API that would change the answer
    and are not served are accepted with the value that changes nothing, and refused with another."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    parallel: Parallel = Parallel()

    @field_validator("presence_penalty", "frequency_penalty", mode="before")
    @classmethod
    def is_zero(cls, value: Any) -> Any:
        return 0 if isinstance(value, float) and value == 0 else value

    @property
    def most(self) -> int | None:
        """The largest number of tokens; None for that of the model's training."""
        return self.max_tokens


class Part(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Chat(Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = None
    logprobs: Literal[False] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class Completion(Asked):
    """POST /v1/completions."""

    prompt: str
    echo: Literal[False] | None = None
    logprobs: Annotated[int, Field(le=0, ge=0)] | None = None


class Caps(BaseModel):
    """What one request may ask for; see `parallel-r1 serve --help`."""

    prompt_tokens: Count = 32_768
    tokens: Count = 32_768
    paths: Count = 16


class Reader:
    """Makes requests of clients into requests to the engine.

    Args:
        policy: the model that answers.
        card: how it was trained: the settings where a request names none.
        sampler: instead of the one that it was trained with; None for that.
        caps: the most that a request may ask for.
    """

    def __init__(self, policy: Policy, card: TrainingCard | None, sampler: str | None, caps: Caps) -> None:
        self.policy, self.card, self.caps = policy, card, caps
        base = card.sampling if card else Sampling()
        if sampler is not None:
            base = base.model_copy(update={"sampler": sampler})
        self.base = base
        template = getattr(policy.tokenizer, "chat_template", None)
        self.form = card.prompt.form if card else ("chat" if template else "plain")
        self.instruction = card.prompt.instruction if card else ""

    def read(self, asked: Asked, number: int, index: int) -> Order:
        """The order for an answer.

        Args:
            number: of the order.
            index: among the answers that this client asks for.

        Raises:
            UserError: values that exclude each other, or above what is allowed; a prompt that is empty or too long.
        """
        sampling = self.sampling(asked)
        ids = self.prompt(asked)
        if len(ids) > self.caps.prompt_tokens:
            raise UserError(f"a prompt of at most {self.caps.prompt_tokens} tokens", f"{len(ids)}", "shorten it")
        check_length(self.policy, len(ids), sampling)
        seed = secrets.token_hex(8) if asked.seed is None else str(asked.seed)
        request = Request(ids, sampling, f"{seed}/{index}")
        check_request(request, index, self.policy.tags, self.policy.decode)
        return Order(number, ids, sampling, request.seed, asked.parallel.mode == "parallel")

    def prompt(self, asked: Asked) -> list[int]:
        """The tokens of the prompt. A tag in it is text."""
        tokenizer = self.policy.tokenizer
        if isinstance(asked, Completion):
            return encode_foreign(tokenizer, _text(asked.prompt))
        assert isinstance(asked, Chat)
        last, before = asked.messages[-1], asked.messages[:-1]
        if last.role != "user":
            raise UserError("a last message of the user", f"one of the {last.role}", "end with what the user says")
        if self.form == "chat":
            messages = [("system" if one.role == "developer" else one.role, _text(one.text)) for one in before]
            return encode_foreign(tokenizer, _text(last.text), "chat", messages, self.instruction)
        if any(message.role in ("system", "developer") for message in before):
            raise UserError("no system message: this model has no chat template", "one", "leave it out")
        # Problems end with a line break, which no person types.
        text = _text(last.text).removesuffix("\n") + "\n"
        return encode_foreign(tokenizer, text, instruction=self.instruction)

    def sampling(self, asked: Asked) -> Sampling:
        """The settings of a request, where it names none those of the model's training."""
        from pydantic import ValidationError

        parallel, base = asked.parallel, self.base
        total = parallel.budget.total or asked.most
        budget = base.budget.model_dump()
        if total is not None:
            budget |= {"total": total, "critical_path": total}
        given = {"critical_path": parallel.latency, "path": parallel.budget.path, "depth": parallel.budget.depth}
        budget |= {name: value for name, value in given.items() if value is not None}
        if parallel.forks is not None:
            budget["forks"] = parallel.forks
        values = {"temperature": asked.temperature, "top_p": asked.top_p, "paths": parallel.paths}
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop
        if stop is not None:
            values["stop"] = tuple(stop)  # type: ignore[assignment]
        if parallel.mode == "sequential":
            values["sampler"] = "sequential"  # type: ignore[assignment]
        closing = {name: getattr(parallel, name) for name in ("spare", "straggler", "agree")}
        if any(value is not None for value in closing.values()):
            values["branches"] = {name: value for name, value in closing.items() if value is not None}  # type: ignore[assignment]
        merged = base.model_dump() | {name: value for name, value in values.items() if value is not None}
        try:
            sampling = Sampling.model_validate(merged | {"budget": Budget.model_validate(budget)})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(f"valid settings ({place})", f"{first['input']!r:.60}", first["msg"]) from error
        self._check(sampling, parallel.mode)
        return sampling

    def _check(self, sampling: Sampling, mode: Mode) -> None:
        for name, value, most in (
            ("tokens", sampling.budget.total, self.caps.tokens),
            ("paths", sampling.most, self.caps.paths),
        ):
            if value > most:
                raise UserError(f"at most {most} {name}", f"{value}", "ask for fewer")
        if mode == "parallel" and not sampling.opens_forks:
            raise UserError(
                "a budget with room for a fork, and two paths or more, for mode 'parallel'",
                f"paths {sampling.most}, {sampling.budget!r}",
                "raise the budget, or use mode 'auto'",
            )


def _text(text: str) -> str:
    """A text of a client that a tokenizer can read."""
    if lone := lone_surrogate(text):
        raise UserError("text in Unicode", f"half of a character, {lone}", "send it whole")
    return text
