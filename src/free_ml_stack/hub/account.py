"""Query how much storage an account uses on the Hub."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from free_ml_stack.credentials.keys import Key

PRIVATE = {"free": 100e9, "PRO": 1e12}  # bytes; https://huggingface.co/docs/hub/storage-limits


def storage(key: "Key", account: str, namespace: str, plan: str) -> dict[str, Any]:
    """Return the private and public bytes of a namespace and its private limit; {} if the request fails.

    Source: huggingface_hub's list_user_repos.
    """
    from huggingface_hub import HfApi

    own = namespace.casefold() in ("", account.casefold())
    try:
        repos = list(HfApi(endpoint=key.address, token=key.value).list_user_repos(None if own else namespace))
    except Exception:  # the report is optional
        return {}
    sizes = {kind: sum(repo.storage for repo in repos if repo.visibility == kind) for kind in ("private", "public")}
    return {"account": namespace or account, **sizes, "limit": PRIVATE.get(plan) if own else None}


def line(used: dict[str, Any]) -> str:
    """Format the result of `storage` as a line."""
    limit = f" of {used['limit'] / 1e9:,.0f}" if used["limit"] else ""
    return (
        f"{used['private'] / 1e9:,.2f}{limit} GB private, {used['public'] / 1e9:,.2f} GB public, of {used['account']}"
    )
