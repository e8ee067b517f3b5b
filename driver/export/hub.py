"""Models to the Hugging Face Hub: repositories made private, one commit each, and nothing left there when a push fails.

Called by driver/export/stage.py and, for what can be known before training, by the preflight. Waits for the network, each
silence at most TIMEOUT_S. The token comes from the environment alone, and is in no message. Repositories are committed with
create_commit, not upload_folder, which cuts a large folder into several commits (huggingface_hub 2.4).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from common.config.config import ExportConfig
from driver.preflight.findings import Findings

CONNECT_S = 20.0
TIMEOUT_S = 300.0  # the Hub may think about a commit for a while; huggingface_hub's own client waits for ever
REFUSED = {
    401: "the Hub refused the token in {token_env}; make one with write access at {endpoint}/settings/tokens",
    403: "the token in {token_env} may not do this; it needs write access to {repo}",
}
SHOWN = 300  # characters of an error of the Hub or its client


class HubError(RuntimeError):
    """A push that cannot begin or did not happen; says why and what is left on the Hub."""


@dataclass(frozen=True)
class Upload:
    """A directory that becomes one commit of the repository `repo` (owner/name)."""

    repo: str
    directory: Path


def repositories(push_to_hub: str) -> tuple[str, str]:
    """Where the policy and the reward model go."""
    return push_to_hub, f"{push_to_hub}-rm"


def check_push(settings: ExportConfig, findings: Findings) -> None:
    """Names, token and offline mode, as far as they can be known without the network."""
    if settings.push_to_hub is None:
        return
    try:
        for repo in repositories(settings.push_to_hub):
            validate_repo_id(repo)
        read_token(settings.token_env)
    except HFValidationError as error:
        findings.problem(f"export.push_to_hub: {error}")
    except HubError as error:
        findings.problem(str(error))
    if constants.is_offline_mode():
        findings.problem("export.push_to_hub is set and so is HF_HUB_OFFLINE; unset one of them")


def read_token(token_env: str) -> str:
    """The token of that environment variable. HubError (which never shows it) where there is none."""
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise HubError(
            f"export.push_to_hub is set and the environment variable {token_env} (export.token_env) is not; set it to a "
            "token with write access, or set export.push_to_hub: null"
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise HubError(f"{token_env} holds characters that no token has; copy the token again")
    return token


class Hub:
    """The Hub as one user sees it. The token stays in the client's headers."""

    def __init__(self, token_env: str, endpoint: str | None = None, timeout_s: float = TIMEOUT_S):
        self._token, self._token_env = read_token(token_env), token_env
        timeout = httpx2.Timeout(timeout_s, connect=CONNECT_S)
        set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=timeout))
        self._api = HfApi(endpoint, self._token)

    def push(self, uploads: Sequence[Upload], message: str, private: bool, allow_existing: bool) -> list[str]:
        """Pushes all directories or none of them; the repositories' URLs. A repository that this call created is deleted
        again when any part fails, or when the process is told to stop. Raises HubError."""
        left: list[str] = []
        repo = uploads[0].repo
        try:
            with ExitStack() as undo:
                self._api.whoami()
                for repo in (upload.repo for upload in uploads):
                    if self._create(repo, private, allow_existing):
                        undo.callback(self._delete, repo, left)
                for upload in uploads:
                    repo = upload.repo
                    self._commit(upload, message)
                undo.pop_all()
        except Exception as error:  # the client, its HTTP library and its storage library each have their own errors
            raise HubError(" ".join([self._explain(error, repo), *left])) from None  # the chain could show headers
        return [f"{self._api.endpoint}/{upload.repo}" for upload in uploads]

    def _create(self, repo: str, private: bool, allow_existing: bool) -> bool:
        """Whether the repository is new; one that was there is used only where that is allowed, and as it was asked for."""
        url = f"{self._api.endpoint}/{repo}"
        try:
            self._api.create_repo(repo, private=private)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
        except (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError) as error:
            raise HubError(
                f"{url}: the Hub did not answer when it was to be created ({self._line(error)}); it may be there now, empty: "
                "look, and delete it."
            ) from None
        else:
            return True
        if not allow_existing:
            raise HubError(
                f"{url} is there already; choose another export.push_to_hub, delete it, or set export.allow_existing: true "
                "to add a commit to it."
            )
        if private and not self._api.model_info(repo).private:
            raise HubError(
                f"export.private is true and {url} is public; make it private in its settings, or set export.private: false."
            )
        return False

    def _commit(self, upload: Upload, message: str) -> None:
        """All files in one commit, which removes weights of an earlier one (vLLM reads every *.safetensors there is)."""
        files = {
            str(path.relative_to(upload.directory)): path for path in upload.directory.rglob("*") if path.is_file()
        }
        there = [sibling.rfilename for sibling in self._api.model_info(upload.repo).siblings or []]
        stale = [
            name for name in there if name not in files and name.endswith((".safetensors", ".safetensors.index.json"))
        ]
        add = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
        remove = [CommitOperationDelete(name) for name in sorted(stale)]
        self._api.create_commit(upload.repo, [*remove, *add], commit_message=message)

    def _delete(self, repo: str, left: list[str]) -> None:
        """Undoes _create; where that fails, `left` says so to the user."""
        try:
            self._api.delete_repo(repo, missing_ok=True)
        except Exception as error:  # the first failure is the one to report; this one is added to it
            url = f"{self._api.endpoint}/{repo}"
            left.append(f"{url} was created and could not be deleted ({self._line(error)}); delete it in its settings.")

    def _explain(self, error: Exception, repo: str) -> str:
        if isinstance(error, HubError):
            return str(error)
        endpoint = self._api.endpoint
        if isinstance(error, HfHubHTTPError) and (reason := REFUSED.get(error.response.status_code)):
            return reason.format(token_env=self._token_env, endpoint=endpoint, repo=repo) + "."
        if isinstance(error, (httpx2.TransportError, ConnectionError)):
            return f"the Hub at {endpoint} cannot be reached for {repo} ({self._line(error)})."
        inner = error.__cause__ if isinstance(error, RuntimeError) else None  # an LFS upload wraps its errors
        return f"the push to {endpoint}/{repo} failed ({self._line(inner or error)})."

    def _line(self, error: BaseException) -> str:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return text.replace(self._token, "***")[:SHOWN]
