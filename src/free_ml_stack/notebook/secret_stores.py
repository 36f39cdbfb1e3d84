"""The secrets of Colab and Kaggle. Standard library only."""

from collections.abc import Callable, MutableMapping
from importlib import import_module

OUTSIDE = (
    "Colab's secrets exist only in Colab's own page, not in VS Code or a terminal; run "
    '`import os, getpass; os.environ["{0}"] = getpass.getpass()` in a cell, then this cell again, or add a line to .env'
)


def secrets(environ: MutableMapping[str, str]) -> Callable[[str], tuple[str, str]]:
    """Return a function that reads a secret of this platform by name, and returns its value and a message."""
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return kaggle_secret
    if "COLAB_RELEASE_TAG" in environ and "VERTEX_PRODUCT" not in environ:
        return ColabSecrets()
    return lambda name: ("", "not set; continuing without it (set it in .env)")


class ColabSecrets:
    """Colab's secrets; after a timeout (VS Code, a terminal) they are not requested again."""

    def __init__(self) -> None:
        self.silent = False

    def __call__(self, name: str) -> tuple[str, str]:
        """Return the value of a secret, or "", and a message."""
        if self.silent:
            return "", "not requested again; set it in the same way"
        errors, userdata = import_module("google.colab.errors"), import_module("google.colab.userdata")
        try:
            value = str(userdata.get(name))
        except userdata.SecretNotFoundError:
            return "", "not set in Colab secrets; continuing without it (add it under the key icon)"
        except userdata.NotebookAccessError:
            return (
                "",
                "continuing without it; enable “Notebook access” for the secret and run this cell again",
            )
        except userdata.TimeoutException:
            self.silent = True
            return "", OUTSIDE.format(name)
        except (errors.Error, ValueError) as error:
            return "", f"cannot read Colab secrets ({type(error).__name__}); continuing without it"
        return value, "from Colab secrets"


def kaggle_secret(name: str) -> tuple[str, str]:
    """Return a secret of Kaggle and a message; its client has many error types."""
    try:
        return str(import_module("kaggle_secrets").UserSecretsClient().get_secret(name)), "from Kaggle secrets"
    except Exception as error:
        return (
            "",
            f"cannot read Kaggle secrets ({type(error).__name__}); continuing without it (see Add-ons > Secrets)",
        )
