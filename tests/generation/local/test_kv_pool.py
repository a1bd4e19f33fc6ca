"""The pool of keys and values: nothing is lost, nothing leaks, and it holds no more than it promises."""

import random
import weakref

import numpy as np
import pytest
import torch
from common import draw, force_forks, prompts_of
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.local import engine as engine_room
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.local.kv_pool import BLOCK, Pool
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Engine, Sampling

HEADS, HEAD = 2, 3


class Ledger:
    """A pool whose every token has a number for a key, and beside it what every branch should read."""

    def __init__(self):
        self.pool, self.next, self.reads = Pool(torch.device("cpu")), 1, {}

    def open(self, prompt=None):
        branch = self.pool.open(prompt, prompt.position if prompt else 0)
        self.reads[branch] = list(self.reads[prompt]) if prompt else []
        if prompt:
            prompt.users += 1
        return branch

    def add(self, feeds):
        table = self.pool.place(feeds)
        numbers = torch.arange(self.next, self.next + table.shape[1], dtype=torch.float32)
        key = numbers[None, :, None].expand(HEADS, -1, HEAD)
        blocks, places, _ = torch.from_numpy(table)
        for layer in range(2):
            self.pool.write(layer, blocks, places, key, -key)
        for branch, count in feeds:
            self.reads[branch] += range(self.next, self.next + count)
            self.next += count

    def fork(self, trunk, paths):
        children = self.pool.fork(trunk, paths)
        self.reads |= {child: list(self.reads[trunk]) for child in children}
        return children

    def join(self, trunk, paths, keep):
        before = len(self.reads[trunk])
        for path in paths[:keep]:
            self.reads[trunk] += self.reads[path][before:]
        self.pool.join(trunk, paths, keep)

    def check(self, branches):
        """Every branch reads exactly its tokens, in some order, at their positions; all other blocks are free."""
        keys, values = self.pool.layers[1]
        used = set()
        for branch in branches:
            blocks = branch.read
            used.update(blocks)
            filled = np.arange(BLOCK) < self.pool.fill[blocks][:, None]
            for head in range(HEADS):
                assert sorted(keys[blocks][:, head][filled][:, 0].tolist()) == sorted(self.reads[branch])
                assert sorted((-values[blocks][:, head][filled][:, 2]).tolist()) == sorted(self.reads[branch])
            assert sum(int(self.pool.fill[block]) for block in branch.blocks) == branch.tokens
            assert all(self.pool.fill[block] == BLOCK for block in branch.blocks[:-1])
        assert len(used) == self.pool.used


def bound(pool, branches):
    """The promise, in tokens: 1.15 x those that are held, and one block for every branch."""
    return 1.15 * pool.held + BLOCK * branches


@given(st.integers(0, 10**6))
def test_branches_read_their_tokens_whatever_happens(seed):
    """Opened, fed, forked, nested, joined with all paths or one, closed, shrunk at random, beside a shared prompt."""
    rng, book = random.Random(seed), Ledger()
    prompt = book.open()
    book.add([(prompt, rng.randint(1, 40))])
    waiting, live, answers = [], [], []  # (trunk, paths); branches that can be fed; trunks
    for _ in range(60):
        act = rng.choice(["open", "feed", "feed", "fork", "join", "close", "fit"])
        if act == "open":
            answers.append(book.open(rng.choice([None, prompt])))
            live.append(answers[-1])
        elif act == "feed" and live:
            some = rng.sample(live, rng.randint(1, len(live)))
            book.add([(branch, rng.choice([1, 1, 1, 5, 33])) for branch in some])
        elif act == "fork" and live:
            trunk = live.pop(rng.randrange(len(live)))
            waiting.append((trunk, book.fork(trunk, rng.randint(1, 4))))
            live += waiting[-1][1]
        elif act == "join":
            ready = [pair for pair in waiting if all(path in live for path in pair[1])]
            if ready:
                trunk, paths = rng.choice(ready)
                waiting.remove((trunk, paths))
                live = [branch for branch in live if branch not in paths] + [trunk]
                longest = max(path.position for path in paths)
                book.join(trunk, paths, rng.choice([1, len(paths)]))
                assert trunk.position <= longest
        elif act == "close" and answers:
            trunk = answers.pop(rng.randrange(len(answers)))
            family = set(trunk.answer)
            live = [branch for branch in live if branch not in family]
            waiting = [pair for pair in waiting if pair[0] not in family]
            book.pool.close(trunk)
        elif act == "fit":
            book.pool.fit()
            if book.pool.layers:
                open_ones = [prompt, *(branch for trunk in answers for branch in trunk.answer)]
                assert len(book.pool) * BLOCK <= bound(book.pool, len(open_ones))
        if book.pool.layers:
            open_ones = [prompt, *(branch for trunk in answers for branch in trunk.answer)]
            book.check(open_ones)
            tokens = [*(part for branch in open_ones for part in branch.before), *open_ones]
            assert book.pool.held == sum(part.tokens for part in {id(part): part for part in tokens}.values())
    for trunk in (*answers, prompt):
        book.pool.close(trunk)
    book.pool.fit()
    assert book.pool.used == book.pool.held == len(book.pool) == 0


class Watched(LocalEngine):
    """An engine that measures its memory after every step."""

    def step(self, feeds):
        logits = super().step(feeds)
        pool = self.pool
        branches = {branch for branch, _ in feeds}
        branches |= {each for branch in branches for each in branch.answer} | set(self.shared.values())
        token = sum(part[0, :, 0].nbytes for pair in pool.layers.values() for part in pair)
        assert pool.held == self.counts.kv
        assert pool.bytes == len(pool) * BLOCK * token
        assert pool.bytes <= token * bound(pool, len(branches))
        return logits


@pytest.mark.parametrize("sampler", ["isolated", "causal_join", "sequential"])
def test_memory_is_what_is_held_at_every_step(frozen, sampler):
    budget = Budget(total=150, critical_path=80, path=20, depth=2)
    sampling = Sampling(sampler=sampler, paths=3, budget=budget)
    engine = Watched(frozen.model)
    force = force_forks(frozen.tags) if sampler != "sequential" else None
    traces = draw(engine, frozen.tags, prompts_of(frozen, 9), sampling, 0, force=force, rows=5)
    assert len(traces) == 9
    with torch.inference_mode():
        engine.pool.fit()
    assert engine.counts.kv == engine.pool.used == len(engine.pool) == engine.pool.bytes == 0


def test_one_long_answer_does_not_make_the_others_large(frozen):
    """256 short answers and one of 600 tokens: dense rows would hold 257 times the longest."""
    engine, (end, *_) = Watched(frozen.model), frozen.tags.eos
    (word,) = frozen.encode("7")
    sampling = Sampling(sampler="sequential", budget=Budget(total=600, critical_path=600))
    traces = draw(
        engine,
        frozen.tags,
        prompts_of(frozen, 257),
        sampling,
        0,
        force=lambda index, address, size: word if not index or size < 3 else end,
        rows=257,
    )
    assert sorted(len(trace.token_ids) for trace in traces)[-2:] == [4, 600]


def test_nothing_is_held_when_all_answers_are_drawn(frozen, monkeypatch):
    """So a learner, or a validation, has the memory to itself."""
    pools = []

    class Noted(Pool):
        def __init__(self, device, **more):
            super().__init__(device, **more)
            pools.append(weakref.ref(self))

    monkeypatch.setattr(engine_room, "Pool", Noted)
    generator = make_generator(frozen, Engine())
    generator.traces([Request(prompt, Sampling(budget=Budget(total=20)), "0") for prompt in prompts_of(frozen, 3)])
    assert len(pools) == 1
    assert pools[0]() is None


def test_a_fork_copies_nothing():
    pool = Pool(torch.device("cpu"))
    trunk = pool.open()
    table = torch.from_numpy(pool.place([(trunk, 100)]))
    pool.write(0, table[0], table[1], torch.ones(HEADS, 100, HEAD), torch.ones(HEADS, 100, HEAD))
    used, part = pool.used, pool.layers[0][0]
    children = pool.fork(trunk, 64)
    assert pool.used == used == 7
    assert pool.layers[0][0] is part
    assert all(child.before[0].blocks is children[0].before[0].blocks for child in children)
