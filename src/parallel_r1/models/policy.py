"""Hugging Face models and tokenizers, with the tags of a schema as tokens. No transformer of our own."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from parallel_r1.answers.rollout import Message
from parallel_r1.answers.syntax import Tags
from parallel_r1.errors import UserError, nearest
from parallel_r1.models.settings import LoRA
from parallel_r1.shipped import resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

from parallel_r1.models.checks import check_model, check_vocabulary
from parallel_r1.models.tokens import Form, encode, encode_prompt, tag_ids

log = logging.getLogger(__name__)
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Our names of the dtypes of weights -> those of torch."""


@dataclass
class Policy:
    """A causal language model with its tokenizer, ready to fork. `load` makes one.

    `model` stays an ordinary Hugging Face model: `generate`, `save_pretrained` and a forward pass with a padding mask
    or a KV cache work as they do on any other. What this package adds is used only by its own calls.

    Attributes:
        model: the model, on the device where it generates; training changes its weights in place.
        tokenizer: a tokenizer in which every tag of its schema is one token.
        tags: the ids of the tags and of the tokens around them.
        version: number of updates that the weights have had: since they were loaded, and in the run that loads them.
        lora: settings of the adapter that learns beside frozen weights; None if all weights learn.
        source: the folder or hub id that the weights were loaded from, as long as they are unchanged.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tags: Tags
    version: int = 0
    lora: LoRA | None = None
    source: str | None = None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; a tag in it is one token, and no special token is added."""
        return encode(self.tokenizer, self.tags, text)

    def encode_prompt(self, text: str, form: Form = "plain", before: Sequence[Message] = ()) -> list[int]:
        """The tokens of a prompt, with the beginning of text or in the chat template; see `models.tokens`."""
        return encode_prompt(self.tokenizer, text, form, before)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, with tags and without the end of text."""
        kept = [token for token in token_ids if token not in self.tags.eos]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))


def digest(policy: Policy) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a policy's weights, as they are held, and of its vocabulary."""
    import torch

    sha = hashlib.sha256()
    for name, weight in policy.model.named_parameters():
        values = weight.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        sha.update(memoryview(values.view(torch.uint8).numpy()))
    sha.update(repr(sorted(policy.tokenizer.get_vocab().items())).encode())
    return sha.hexdigest()[:16]


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub."""
    from transformers import AutoTokenizer

    path = resolve(path)
    _check_folder(path, "tokenizer_config.json")
    with _loading(path):
        return AutoTokenizer.from_pretrained(path)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantisation: QuantizationConfigMixin | None = None,
) -> Policy:
    """Load a causal model with its tokenizer, ready to fork.

    Args:
        path: a Hugging Face model folder, or the id of a model on the hub.
        device: "cpu", "cuda", or one of several such as "cuda:1"; "auto" is CUDA where there is one, else the CPU.
        dtype: of the weights, "fp32" or "bf16"; "auto" is fp32, in which sampled and scored log-probabilities agree.
        quantisation: how transformers shall quantise the linear layers; None to leave them as they are.

    Raises:
        UserError: a folder that does not exist, a file that is missing or cut off, a tokenizer without the tags, a
            model that cannot fork (see `check_model`), a device that this machine does not have, another dtype.
    """
    path, place, weights = str(path), device_of(device), dtype_of(dtype)
    tokenizer = load_tokenizer(path)
    tag_ids(tokenizer)  # what a tokenizer lacks is said before weights are read
    model: Any = load_model(path, weights, quantisation)
    tags = tags_of(tokenizer, model)
    check_vocabulary(tags, model.config.get_text_config().vocab_size, path)
    return Policy(model if model.device == place else model.to(place), tokenizer, tags, source=str(path))


def load_outline(path: str | Path) -> Policy:
    """Load a model without its weights: its tokenizer, tags and configuration, for a process that draws nothing.

    Raises:
        UserError: see `load`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer, folder = load_tokenizer(str(path)), resolve(str(path))
    tag_ids(tokenizer)
    with _loading(folder):
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        with suppress(OSError):  # not every model has one
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return Policy(model, tokenizer, tags_of(tokenizer, model), source=str(path))


def tags_of(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Tags:
    """The tags of a tokenizer with what the model adds: the ends of `generation_config`, and rows without a token."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    return tag_ids(tokenizer, listed, model.config.get_text_config().vocab_size)


def device_of(name: str) -> torch.device:
    """The device of a name that `load` takes. Of several processes that torchrun started, each takes a GPU of its own
    for "auto" and "cuda".

    Raises:
        UserError: a name of another form, or a device that this machine does not have.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = {"cpu": torch.device("cpu"), **{f"cuda:{index}": torch.device("cuda", index) for index in range(count)}}
    if count:
        own = os.environ.get("LOCAL_RANK")  # torchrun sets it
        devices["cuda"] = torch.device("cuda", torch.cuda.current_device() if own is None else int(own) % count)
    if name == "auto":
        return devices.get("cuda", devices["cpu"])
    if name not in devices:
        raise UserError(f"a device of this machine: {', '.join(sorted(devices))}", f"'{name}'", "give device='auto'")
    return devices[name]


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name that `load` takes.

    Raises:
        UserError: another name.
    """
    import torch

    if name != "auto" and name not in DTYPES:
        raise UserError(f"a dtype among auto, {', '.join(DTYPES)}", f"'{name}'", "give dtype='auto', which is fp32")
    return getattr(torch, DTYPES.get(name, "float32"))


def load_model(
    path: str, dtype: torch.dtype | Literal["auto"], quantisation: QuantizationConfigMixin | None = None
) -> PreTrainedModel:
    """Load a causal model alone, on the CPU unless it is quantised; see `load`.

    Args:
        dtype: of its weights; "auto" for the one in which they were saved.
    """
    from transformers import AutoModelForCausalLM

    from parallel_r1.models.attention import ATTENTION

    path = resolve(path)
    with _loading(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            quantization_config=quantisation,
            attn_implementation=ATTENTION,
            output_loading_info=True,
            use_safetensors=True,  # unpickling weights runs code
        )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills them with random numbers
        raise UserError(
            "weights for the whole model", f"'{path}' without {len(missing)}, such as {missing[0]}", "download it again"
        )
    check_model(model)
    log.info("loaded %s: %s parameters in %s on %s", path, f"{parameter_count(model):,}", model.dtype, model.device)
    return model.eval()


@contextmanager
def _loading(path: str) -> Iterator[None]:
    """Turn the many errors of a model that is missing or incomplete into one `UserError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            "a whole Hugging Face model folder, or a hub id that can be reached",
            f"'{path}' ({str(error).splitlines()[0]})",
            "check the path or the network, or download again what is incomplete",
        ) from error


def _check_folder(path: str, file: str) -> None:
    """Refuse a local path that is not a model folder; anything that looks like a hub id is left to transformers.

    `models/x` has the form of a hub id, but is a path where there is a folder `models`: the hub would be asked for
    nearly a minute where it cannot be reached.
    """
    folder = Path(path)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1 or folder.parent.is_dir()
    if looks_local and not (folder / file).is_file():
        if folder.is_dir():
            raise UserError(f"a Hugging Face model folder with {file}", f"folder {path} without it", "check the path")
        beside = sorted(str(other) for other in folder.parent.glob("*") if (other / file).is_file())
        advice = nearest(path, beside) if beside else "check the path"
        raise UserError(f"a Hugging Face model folder with {file}", f"no folder {path}", advice)


def save(policy: Policy, folder: Path) -> None:
    """Write an ordinary Hugging Face model folder."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def parameter_count(model: PreTrainedModel) -> int:
    """Number of trainable and frozen parameters; tied ones count once."""
    return int(model.num_parameters())
