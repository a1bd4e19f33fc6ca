"""Memory in bytes: a promise that holds at every step, whatever the answers do."""

from functools import partial

import psutil
import pytest
import torch
from architectures import KINDS, random_model
from common import draw, force_forks, prompts_of
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from parallel_r1.errors import UserError
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.local import capacity
from parallel_r1.generation.local.capacity import block_bytes, blocks, most_blocks, token_bytes
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.local.kv_pool import BLOCK, Pool
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Engine, Sampling

CPU = torch.device("cpu")


class Strict(LocalEngine):
    """An engine that measures its memory at every step, the tensor that is there twice while it grows included."""

    def step(self, feeds):
        logits = super().step(feeds)
        assert len(self.pool) <= self.pool.most
        return logits


@pytest.mark.parametrize("name", KINDS)
def test_a_token_takes_what_the_pool_takes_for_it(name, tokenizer, tags):
    model = random_model(name, len(tokenizer), layers=2)
    engine = LocalEngine(model)
    (trunk,) = engine.open([[1, 2, 3]], [False])
    engine.step([(trunk, 3)])
    assert engine.pool.bytes == len(engine.pool) * BLOCK * token_bytes(model.config, model.dtype)


@pytest.mark.parametrize("sampler", ["isolated", "causal_join"])
@given(data=st.data())
@settings(max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_bytes_are_never_exceeded_and_nothing_that_is_drawn_changes(frozen, sampler, data):
    paths, depth = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 2))
    total = data.draw(st.integers(20, 150))
    budget = Budget(total=total, critical_path=80, path=data.draw(st.integers(5, 25)), depth=depth)
    sampling = Sampling(sampler=sampler, paths=paths, budget=budget)
    prompts = prompts_of(frozen, 7)
    least = most_blocks(max(map(len, prompts)), total, paths, depth)
    most = least + data.draw(st.integers(0, 40))
    engine, force = Strict(frozen.model, most=most), force_forks(frozen.tags)
    traces = draw(engine, frozen.tags, prompts, sampling, 0, force=force, rows=7)
    free = draw(LocalEngine(frozen.model), frozen.tags, prompts, sampling, 0, force=force, rows=7)
    assert [trace.token_ids for trace in traces] == [trace.token_ids for trace in free]
    assert engine.counts.kv == engine.pool.used == 0


def test_a_generator_keeps_to_its_bytes_and_waits_where_it_must(frozen):
    budget = Budget(total=200, critical_path=100, path=30)
    force = force_forks(frozen.tags)
    asks = [
        Request(prompt, Sampling(paths=4, budget=budget), str(index), partial(force, 0))
        for index, prompt in enumerate(prompts_of(frozen, 12))
    ]
    size = block_bytes(frozen.model.config, torch.float32)
    tight, free = (make_generator(frozen, Engine(memory=memory)) for memory in (f"{60 * size / 1000:.3f}KB", None))
    assert [each.token_ids for each in tight.traces(asks)] == [each.token_ids for each in free.traces(asks)]
    assert tight.counts.preempted > 0 == free.counts.preempted


@pytest.mark.parametrize(
    ("memory", "count"),
    [("1MB", 1_000_000), ("1 MiB", 2**20), ("0.5GB", 5 * 10**8), ("2KB", 2000)],
)
def test_bytes_as_they_are_written(frozen, memory, count, monkeypatch):
    monkeypatch.setattr(capacity, "block_bytes", lambda config, dtype: 1)
    assert blocks(memory, frozen.model.config, torch.float32, CPU) == count


def test_a_share_is_what_others_have_left_of_it(frozen, monkeypatch):
    monkeypatch.setattr(capacity, "device_bytes", lambda device: 1000)
    monkeypatch.setattr(capacity, "taken_bytes", lambda device: 300)
    monkeypatch.setattr(capacity, "block_bytes", lambda config, dtype: 1)
    assert blocks("80%", frozen.model.config, torch.float32, CPU) == 500
    with pytest.raises(UserError, match="'20%', of which 0 bytes are left on cpu"):
        blocks("20%", frozen.model.config, torch.float32, CPU)


def test_the_memory_of_a_gpu_without_what_torch_keeps_for_later(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert capacity.taken_bytes(torch.device("cuda", 0)) == 300  # 700 are not free, 400 of them only kept


def test_more_than_the_device_has_and_too_little_are_one_line(frozen):
    request = [Request(prompts_of(frozen, 1)[0], Sampling(budget=Budget(total=200)), "0")]
    wanted = 2 * psutil.virtual_memory().total // 10**9
    for memory, said in (
        (f"{wanted}GB", r"engine.memory of at most the [\d.]+ GB of cpu; found '\d+GB'; give less"),
        ("1KB", r"engine.memory for at least 16 tokens of \d+ bytes; found '1KB', of which 1,000 bytes are left"),
        ("60KB", r"memory for a prompt of \d+ tokens and an answer of 200, with forks"),
    ):
        with pytest.raises(UserError, match=said):
            make_generator(frozen, Engine(memory=memory)).traces(request)


@pytest.mark.parametrize("memory", ["lots", "20", "-1", 0, -5, True, "120%", "5", "1.5", "0.5 PB", ""])
def test_memory_in_another_form_is_one_line(memory):
    if memory in ("20", "5"):
        assert Engine(memory=memory).memory == int(memory)
        return
    with pytest.raises(UserError, match="a number of tokens above 0, bytes such as '20GB', or a share such as '80%'"):
        Engine(memory=memory)


def test_a_limited_pool_takes_no_spare_blocks_beyond_its_limit():
    pool = Pool(CPU, most=20)
    trunk = pool.open()
    pool.place([(trunk, 18 * BLOCK)])
    assert len(pool) == 19  # 18 and a tenth of them, rounded down
    pool.place([(trunk, BLOCK)])
    pool.place([(trunk, BLOCK)])
    assert len(pool) == 20
