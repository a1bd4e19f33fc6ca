"""Our scorers inside verl's FSDP engine: the same log-probabilities, loss and gradient as our own learner's."""

from functools import partial

import pytest
import torch
from common import force_forks
from conftest import TINY
from pretended_vllm import ReadBackend, Reader

from parallel_r1 import models
from parallel_r1.generation.live import draw_all
from parallel_r1.generation.request import Request
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.integrations.verl.structure import FIELD, columns, pack
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.learner import Learner
from parallel_r1.training.sample import Sample
from parallel_r1.training.settings import RL

pytestmark = pytest.mark.verl
PROBLEMS, GROUP = 2, 2


@pytest.fixture(scope="module")
def policy():
    return models.load(TINY, device="cpu")


@pytest.fixture(scope="module")
def traces(policy):
    """Answers with nested forks, whose log-probabilities a pretended policy reports."""
    reader = Reader(policy.tags, 400, 1)
    budget = Budget(total=120, critical_path=70, path=30, depth=2)
    sampling = Sampling(sampler="causal_join", paths=3, temperature=0, budget=budget)
    force = force_forks(policy.tags)
    requests = [
        Request([5, 6, 7 + index], sampling, f"s/{index}", lambda a, s, i=index: force(i, a, s)) for index in range(4)
    ]
    batch = Scheduler(ReadBackend(reader), reader.tags, 4)
    drawn = draw_all(batch, [batch.submit(request) for request in requests], 0, None)
    assert max(trace.forks for trace in drawn) >= 2
    return drawn


def engine_of(scorer, monkeypatch, **algorithm):
    """verl's engine in this process, alone in its group."""
    monkeypatch.setenv("PARALLEL_R1_SCORER", scorer)
    import verl
    import verl.utils.distributed
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    from parallel_r1.integrations.verl import plugin

    assert verl.__version__ == "0.9.1"
    plugin.check()
    monkeypatch.setenv("DIST_INIT_METHOD", "tcp://127.0.0.1:29577")
    verl.utils.distributed.initialize_global_process_group_ray()
    packed = scorer == "causal"
    attention = {"attn_implementation": "eager" if packed else "parallel_r1"}
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=str(TINY), override_config=attention, use_remove_padding=False, enable_gradient_checkpointing=False
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            model_dtype="fp32",
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            use_torch_compile=False,
            use_dynamic_bsz=True,
            max_token_len_per_gpu=400,
            infer_max_token_len_per_gpu=400,
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-4, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def batch_of(traces, old, advantages):
    """Rows as verl's agent loop worker puts them into its queue, and as its trainer adds to them."""
    from verl.utils import tensordict_utils as tu

    rows = []
    for trace, before, advantage in zip(traces, old, advantages, strict=True):
        ids, mask, logprobs = columns(trace)
        prompt = list(trace.prompt_ids)
        rows.append(
            {
                "prompts": torch.tensor(prompt),
                "responses": torch.tensor(ids),
                "response_mask": torch.tensor(mask),
                "loss_mask": torch.tensor(mask),
                "input_ids": torch.tensor(prompt + ids),
                "position_ids": torch.arange(len(prompt) + len(ids)),
                "rollout_log_probs": torch.tensor(logprobs),
                "old_log_probs": before,
                "advantages": torch.full((len(ids),), advantage) * torch.tensor(mask),
                "extra_fields": {FIELD: pack(trace)},
            }
        )
    data = tu.list_of_dict_to_tensordict(rows)
    for key in [key for key, value in rows[0].items() if torch.is_tensor(value)]:  # of any lengths, equal ones too
        data[key] = torch.nested.as_nested_tensor([row[key] for row in rows], layout=torch.jagged)
    tu.assign_non_tensor(
        data,
        temperature=1.0,
        use_remove_padding=False,
        use_dynamic_bsz=True,
        max_token_len_per_gpu=400,
        use_fused_kernels=False,
        calculate_entropy=False,
        global_batch_size=len(rows),
    )
    return data


@pytest.mark.parametrize("scorer", ["isolated", "replay", "causal"])
@pytest.mark.parametrize("average", ["tokens", "answers", "constant"])
def test_loss_and_gradient_are_those_of_our_learner(policy, traces, scorer, average, monkeypatch):
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    from parallel_r1.integrations.verl.config import MODES, NO_DUAL_CLIP

    stage = RL(
        kind="rl",
        task="countdown-easy",
        steps=1,
        problems=PROBLEMS,
        group=GROUP,
        scorer=scorer,
        sampling=Sampling(sampler="causal_join"),
        algorithm=GRPO(average=average),
        micro_tokens=400,
    )
    learner = Learner(models.load(TINY, device="cpu").model, stage, 1)
    scored = learner.logprobs(traces)
    old = [values + 0.3 * torch.sin(torch.arange(len(values))) for values in scored]
    advantages = [1.0, -1.0, 0.5, -0.5]
    kept = [
        Sample(trace, advantage, old=values) for trace, advantage, values in zip(traces, advantages, old, strict=True)
    ]
    (samples,) = stage.algorithm.updates([kept[:2], kept[2:]], 120)
    metrics = {}
    for part in learner.backward(samples, range(4), stage.algorithm, sum(sample.sampled for sample in samples)):
        metrics["loss"] = metrics.get("loss", 0.0) + part["loss"]
    expected = {name: weight.grad.clone() for name, weight in learner.model.named_parameters()}

    engine = engine_of(scorer, monkeypatch)
    actor = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=GROUP,
        ppo_mini_batch_size=PROBLEMS,
        ppo_micro_batch_size_per_gpu=1,
        loss_agg_mode=MODES[average],
        loss_scale_factor=120 if average == "constant" else None,
        clip_ratio_c=NO_DUAL_CLIP,
        use_kl_loss=False,
    )
    data = batch_of(traces, old, advantages)
    with engine.train_mode():
        output = engine.forward_backward_batch(data, partial(ppo_loss, config=actor))
        found = {name: weight.grad.full_tensor().clone() for name, weight in engine.module.named_parameters()}
    assert sum(output["loss"]) == pytest.approx(metrics["loss"], abs=1e-5)
    assert set(found) == set(expected)
    assert max(value.abs().max() for value in expected.values()) > 0.01
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    kinds = {"sum", "tokens", "max", "after_fork", "after_join"}
    assert {f"parallel_r1/mismatch_{kind}" for kind in kinds} <= set(output["metrics"])
    decayed = [[weight.shape for weight in group["params"]] for group in engine.optimizer.param_groups]
    assert decayed == [[weight.shape for weight in group["params"]] for group in learner.optimizer.param_groups]


@pytest.mark.parametrize("scorer", ["isolated", "replay"])
def test_a_path_does_not_see_its_sibling_inside_the_engine(traces, scorer, monkeypatch):
    """Another token in one path: its sibling's log-probabilities stay exactly equal."""
    trace = traces[0]
    paths = sorted({span.address for span in trace.spans if len(span.address) == 1})[:2]
    places, at = {path: [] for path in paths}, 0
    for span in trace.spans:
        if span.address in places and span.sampled:
            places[span.address] += range(at, at + len(span.token_ids))
        at += len(span.token_ids)
    engine, scored = engine_of(scorer, monkeypatch), []
    for other in (False, True):
        data = batch_of([trace], [torch.zeros(len(trace.token_ids))], [0.0])
        if other:
            place = places[paths[0]][0]
            values = data["responses"].values().clone()
            values[place] = 9 if values[place] != 9 else 10
            data["responses"] = torch.nested.nested_tensor_from_jagged(values, data["responses"].offsets())
        with engine.eval_mode(), torch.no_grad():
            output = engine.infer_batch(data)
        scored.append(output["model_output"]["log_probs"].values()[len(trace.prompt_ids) - 1 : -1])
    assert torch.equal(scored[0][places[paths[1]]], scored[1][places[paths[1]]])
    assert not torch.equal(scored[0][places[paths[0]]], scored[1][places[paths[0]]])


def test_given_tokens_have_no_gradient(policy, traces, monkeypatch):
    """The loss of a batch does not depend on the log-probabilities of given tokens: they are masked."""
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    engine = engine_of("replay", monkeypatch)
    actor = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_mini_batch_size=4, ppo_micro_batch_size_per_gpu=1, use_kl_loss=False
    )
    stage = RL(kind="rl", task="countdown-easy", steps=1, scorer="replay", sampling=Sampling(sampler="causal_join"))
    old = Learner(models.load(TINY, device="cpu").model, stage, 1).logprobs(traces)
    gradients = []
    data = batch_of(traces, old, [1.0, -1.0, 0.5, -0.5])
    step = engine.prepare_model_outputs

    def kept(micro_batch, **arguments):
        outputs = step(micro_batch=micro_batch, **arguments)
        values, offsets = outputs["log_probs"].values(), micro_batch["input_ids"].offsets()
        values.retain_grad()
        gradients.append((values, micro_batch))
        return {"log_probs": torch.nested.nested_tensor_from_jagged(values, offsets)}

    monkeypatch.setattr(engine, "prepare_model_outputs", kept)
    with engine.train_mode():
        engine.forward_backward_batch(data, partial(ppo_loss, config=actor))
    seen = 0
    for values, micro in gradients:
        rows = values.grad.split(micro["input_ids"].offsets().diff().tolist())
        columns_of = (micro["response_mask"].unbind(), micro["prompts"].unbind())
        for row, mask, prompt in zip(rows, *columns_of, strict=True):
            answer = row[len(prompt) - 1 : -1]
            assert not answer[mask == 0].any()
            assert answer[mask == 1].any()
            seen += int((mask == 0).sum())
    assert seen > 20


def test_packed_rows_are_refused(traces, monkeypatch):
    from verl.utils import tensordict_utils as tu

    engine = engine_of("isolated", monkeypatch)
    data = batch_of(traces, [torch.zeros(len(trace.token_ids)) for trace in traces], [0.0] * 4)
    tu.assign_non_tensor(data, use_remove_padding=True)
    with engine.eval_mode(), torch.no_grad(), pytest.raises(Exception, match="use_remove_padding=False"):
        engine.infer_batch(data)
