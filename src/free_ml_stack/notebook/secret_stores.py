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
    return lambda name: ("", "not set; working without it (a line in .env sets it)")


class ColabSecrets:
    """Colab's secrets; where nobody answers (VS Code, a terminal), it is not asked again."""

    def __init__(self) -> None:
        self.silent = False

    def __call__(self, name: str) -> tuple[str, str]:
        """The value of a secret, or none, and what to do about it."""
        if self.silent:
            return "", "not asked for again; set it in the same way"
        errors, userdata = import_module("google.colab.errors"), import_module("google.colab.userdata")
        try:
            value = str(userdata.get(name))
        except userdata.SecretNotFoundError:
            return "", "not among the secrets; working without it (the key symbol on the left adds it)"
        except userdata.NotebookAccessError:
            return (
                "",
                "switch on “Notebook access” next to the secret, and run this again; working without it",
            )
        except userdata.TimeoutException:
            self.silent = True
            return "", OUTSIDE.format(name)
        except (errors.Error, ValueError) as error:
            return "", f"Colab's secrets do not give it ({type(error).__name__}); working without it"
        return value, "from Colab's secrets"


def kaggle_secret(name: str) -> tuple[str, str]:
    """A secret of Kaggle, whose client has an error of its own for each way to fail."""
    try:
        return str(import_module("kaggle_secrets").UserSecretsClient().get_secret(name)), "from Kaggle's secrets"
    except Exception as error:
        return "", f"not given ({type(error).__name__}); working without it (Add-ons > Secrets adds it)"
