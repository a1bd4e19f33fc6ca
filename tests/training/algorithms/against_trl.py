"""The same answers for our losses and for those of TRL's trainers."""

import torch
from datasets import Dataset
from trl import GRPOConfig

from parallel_r1.answers.trace import Span, Trace
from parallel_r1.training.batch import collate, score
from parallel_r1.training.sample import Sample


def plain_traces(policy, count=6):
    """Answers without a fork, of different lengths behind prompts of different lengths, drawn by nobody: the
    behaviour log-probabilities are the policy's, disturbed, so that ratios fall on both sides of the clip range."""
    generator = torch.Generator().manual_seed(0)
    traces = []
    for index in range(count):
        prompt = tuple(policy.encode("Use 3, 5, 7 to make 22.\n" * (1 + index % 2)))
        answer = tuple(torch.randint(10, 200, (5 + 3 * index,), generator=generator).tolist())
        batch = collate([Sample(Trace(prompt, (Span(answer, (), True),)))], "causal")
        with torch.no_grad():
            exact = score(policy.model, batch)[0, len(prompt) :]
        noise = 0.3 * torch.randn(len(answer), generator=generator)
        traces.append(Trace(prompt, (Span(answer, (), True, tuple((exact + noise).tolist())),)))
    return traces


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


LONGEST = 40
"""The most tokens of an answer."""


def trainer_arguments(policy, config, folder, **options):
    """What a trainer of TRL is made with. Its rewards and data are never read: only its loss is called."""
    return {
        "model": policy.model,
        "reward_funcs": lambda completions, **_: [0.0] * len(completions),
        "args": config(
            output_dir=str(folder),
            beta=0.0,
            use_cpu=True,
            report_to=[],
            per_device_train_batch_size=2,
            num_generations=2,
            bf16=False,
            **options,
        ),
        "train_dataset": Dataset.from_dict({"prompt": ["x"]}),
        "processing_class": policy.tokenizer,
    }


def grpo_trainer(policy, folder, **options):
    return trainer_arguments(policy, GRPOConfig, folder, max_completion_length=LONGEST, **options)


def trl_inputs(policy, traces, advantages, reference=None):
    """Prompts padded on the left and answers on the right, as TRL's `_compute_loss` reads them."""
    longest_prompt = max(len(trace.prompt_ids) for trace in traces)
    longest = max(len(trace.token_ids) for trace in traces)
    pad = policy.tokenizer.pad_token_id
    left = [longest_prompt - len(trace.prompt_ids) for trace in traces]
    right = [longest - len(trace.token_ids) for trace in traces]
    old = [[*t.spans[0].logprobs] + [0.0] * n for n, t in zip(right, traces, strict=True)]
    inputs = {
        "prompt_ids": torch.tensor([[pad] * n + [*t.prompt_ids] for n, t in zip(left, traces, strict=True)]),
        "prompt_mask": torch.tensor([[0] * n + [1] * len(t.prompt_ids) for n, t in zip(left, traces, strict=True)]),
        "completion_ids": torch.tensor([[*t.token_ids] + [pad] * n for n, t in zip(right, traces, strict=True)]),
        "completion_mask": torch.tensor([[1] * len(t.token_ids) + [0] * n for n, t in zip(right, traces, strict=True)]),
        "old_per_token_logps": torch.tensor(old),
        "old_logps": torch.tensor(old).sum(1),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(float(sum(len(trace.token_ids) for trace in traces))),
    }
    if reference is not None:
        padded = [torch.nn.functional.pad(row, (0, n)) for n, row in zip(right, reference, strict=True)]
        inputs["ref_per_token_logps"] = torch.stack(padded)
    return inputs
