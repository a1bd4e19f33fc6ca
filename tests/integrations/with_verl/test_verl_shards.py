"""The weights of a learner of verl from the shards of its processes, to the last bit."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from parallel_r1.errors import UserError
from parallel_r1.integrations.verl.shards import merge

SAVE = """
import sys, torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

folder = sys.argv[1]
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
if rank == 0:
    torch.save(model.state_dict(), f"{folder}/whole.pt")
fully_shard(model, mesh=init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",)))
torch.save(model.state_dict(), f"{folder}/model_world_size_{world}_rank_{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What two processes save of rows that they cannot share evenly."""
    folder = tmp_path_factory.mktemp("actor")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", SAVE, str(folder)], env={**os.environ, **place, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(120) for process in ranks] == [0, 0]
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 2}))
    return folder


def test_shards_make_the_whole_weights(saved):
    expected = torch.load(saved / "whole.pt")
    merged = merge(saved)
    assert list(merged) == list(expected)
    for name, weight in expected.items():
        assert torch.equal(merged[name], weight), name
        assert merged[name].dtype == torch.float32


def test_a_missing_shard_is_said(saved, tmp_path):
    for file in saved.iterdir():
        if "rank_1" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"the shards of a saved state of verl in .*; found FileNotFoundError"):
        merge(tmp_path)
    (tmp_path / "model_world_size_2_rank_1.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match="remove this state"):
        merge(tmp_path)
