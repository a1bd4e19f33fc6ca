"""Send a checkpoint to a Hugging Face hub: which files, where to, and what can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from parallel_r1.errors import UserError
from parallel_r1.shipped import resolve

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
LEFT_OUT = ("optimizer.*", "*.part", "*.lock", ".*")
"""Files and folders that are no part of a model: moments of the optimiser, and what an interrupted write left."""
WEIGHTS = ("*.safetensors", "*.bin")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
AGAIN = "nothing is lost: give the same command again, and files that have arrived are not sent twice"


@dataclass(frozen=True)
class Parcel:
    """The files of a checkpoint that are sent.

    Attributes:
        files: paths inside the folder -> bytes, in order of their names.
        left_out: paths that are no part of the model.
    """

    folder: Path
    files: dict[str, int]
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


@dataclass(frozen=True)
class Sent:
    """What a hub says about files that were sent: the page of the repository, and the commit."""

    url: str
    commit: str


def pack(checkpoint: Path, card: bool = True) -> Parcel:
    """List the files of a checkpoint. Nothing is loaded, and no hub is asked.

    Args:
        card: whether the folder must have a model card.

    Raises:
        UserError: there is no such folder, it is no model, or it has no model card.
    """
    folder = resolve(checkpoint)
    if not folder.is_dir():
        raise UserError("a checkpoint folder", f"no folder {checkpoint}", "check the path")
    if inner := sorted((folder / "checkpoints").glob("*/config.json")):
        names = ", ".join(str(checkpoint / "checkpoints" / file.parent.name) for file in inner)
        raise UserError("one checkpoint", f"a run folder, {checkpoint}", f"give one of {names}")
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    aside = [path for path in paths if any(fnmatch(part, form) for part in path.parts for form in LEFT_OUT)]
    files = {path.as_posix(): (folder / path).stat().st_size for path in paths if path not in aside}
    if not files.keys() & {"config.json", "adapter_config.json"}:
        raise UserError("a checkpoint, with config.json", f"none in {checkpoint}", "give the folder of a model")
    if not any(fnmatch(name, form) for name in files for form in WEIGHTS):
        raise UserError("weights, such as model.safetensors", f"none in {checkpoint}", "give a whole checkpoint")
    if card and CARD not in files:
        raise UserError(
            f"a model card, {CARD}",
            f"none in {checkpoint}",
            "`parallel-r1 train` writes one into the checkpoint of every stage; --without-card sends the model without",
        )
    return Parcel(folder, files, tuple(path.as_posix() for path in aside))


def check_name(repo: str) -> None:
    """Check the name of a repository.

    Raises:
        UserError: it is not OWNER/NAME, or has characters that no hub allows.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        reason = "" if repo.count("/") == 1 else f"'{repo}'"
    except HFValidationError as error:
        reason = str(error)
    if reason:
        raise UserError("a repository as OWNER/NAME", reason, "write it like my-name/my-model")


def send(parcel: Parcel, repo: str, message: str, private: bool = False) -> Sent:
    """Send the files in one commit, so that the repository holds the whole model or what it held before. It is created
    if it does not exist; other files in it stay. The hub is the one of HF_ENDPOINT; the token comes from HF_TOKEN or a
    login.

    Args:
        private: create a private repository; one that exists must be private.

    Raises:
        UserError: no token, no hub, or a hub that refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("a hub to send to", "HF_HUB_OFFLINE=1, which forbids requests", "unset HF_HUB_OFFLINE")
    api = HfApi(token=get_token())
    if not api.token:
        raise UserError("a token of the hub", "none", LOGIN)
    with _explained(api, repo), ExitStack() as opened:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(
                f"a private repository {repo}", "one that everybody sees", "change that on the hub, or name another"
            )
        direct = _has_xet(api, repo)
        operations = []
        for name in parcel.files:
            path = parcel.folder / name
            source = str(path) if direct else opened.enter_context(path.open("rb"))
            operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=source))
        commit = api.create_commit(repo, operations, commit_message=message)
    return Sent(str(url), commit.oid)


def _has_xet(api: HfApi, repo: str) -> bool:
    """Whether a hub has the xet storage, which huggingface_hub uses for paths, and fails without it. Hubs other than
    Hugging Face's own have none: there it is given open files, which it sends by the LFS protocol."""
    from huggingface_hub.utils import build_hf_headers, get_session

    address = f"{api.endpoint}/api/models/{repo}/xet-write-token/main"
    return bool(get_session().get(address, headers=build_hf_headers(token=api.token)).status_code != 404)


@contextmanager
def _explained(api: HfApi, repo: str) -> Iterator[None]:
    """Turn the errors of a hub into one line each, without the token."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # those of the HTTP library, of huggingface_hub, of xet, which share no class
        raise _user_error(error, api, repo) from error


def _user_error(error: BaseException, api: HfApi, repo: str) -> UserError:
    """The error of a hub, or of the way to it, as one line."""
    if isinstance(error, OSError) and error.filename:
        return UserError("files that can be read", str(error), "correct that, and give the same command again")
    hub = str(api.endpoint)
    status, reason = _reason(error)
    reason = reason.replace(str(api.token), "(the token)")
    if status == 401:
        return UserError(f"a token that {hub} takes", f"a refusal: {reason}", LOGIN)
    if status == 403:
        fix = "give a token that may write, or a namespace that is yours"
        return UserError(f"a token that may write to {repo}", f"a refusal: {reason}", fix)
    if status == 404:
        return UserError(f"a hub at {hub} with {repo}", reason, "check the name, and HF_ENDPOINT if it is set")
    if status == 400 or isinstance(error, ValueError):
        return UserError(f"files that {hub} takes", reason, f"correct them: of {CARD}, the block between the lines ---")
    if status is not None:
        return UserError(f"{hub} to take the files", reason, AGAIN)
    return UserError(f"a connection to {hub}", reason, f"check the network and HF_ENDPOINT; {AGAIN}")


def _reason(error: BaseException) -> tuple[int | None, str]:
    """The HTTP status behind an error, if there is one, and the hub's own words, else those of the error."""
    inner: BaseException | None = error
    while inner is not None:
        if (response := getattr(inner, "response", None)) is not None:
            words = getattr(inner, "server_message", None) or response.reason_phrase
            return response.status_code, f"{response.status_code} {words}"
        inner = inner.__cause__ or inner.__context__
    return None, f"{type(error).__name__}: {error}"
