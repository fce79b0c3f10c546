"""Upload of an exported folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from dinado.errors import ConfigError, DataError


def check_upload(repo: str) -> None:
    """Check that an upload can begin, before any work is done for it.

    Raises:
        ConfigError: ``repo`` is no name of a repository, or nobody is logged in.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo}: {error}; give a name such as you/your-model") from None
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    if get_token() is None:
        raise ConfigError(f"--push-to-hub {repo}: nobody is logged in to the Hugging Face Hub; {login}")
    try:
        HfApi().whoami()
    except Exception as error:  # a refused token, no network, a hub that is down: all end the command before its work
        raise ConfigError(
            f"--push-to-hub {repo}: the Hub does not answer to this token ({_line(error)}); {login}"
        ) from None


def upload(repo: str, folder: Path) -> str:
    """Upload a folder to a repository of models, which is created as a private one if it does not exist.

    Returns:
        the address of the repository.

    Raises:
        DataError: the hub refused it; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        url = str(HfApi().create_repo(repo, private=True, exist_ok=True))
        HfApi().upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:
        raise DataError(
            f"--push-to-hub {repo}: {_line(error)}; {folder} is complete: upload it with `hf upload {repo} {folder}`"
        ) from None
    return url


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
