"""Finish a generated project: first commit, credential check, what to run next.

Standard library only, and safe to run twice. Without it (--accept-hooks no) the project is whole too.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# tojson escapes what Jinja and Python would act on, so no answer can become code.
ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")
ROOT = Path.cwd()
PACKAGE = ROOT / "src" / ANSWERS["package_name"]
# Set inside another repository's hook, where they would lead git to that repository.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")


def git(*arguments: str) -> bool:
    """Run git in the project, quietly and without a question; return whether it succeeded."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        subprocess.run(
            ("git", *arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def in_repository() -> bool:
    """Whether the project belongs to a repository already (one that ignores it does not count)."""
    if (ROOT / ".git").exists():
        return True
    return any((parent / ".git").exists() for parent in ROOT.parents) and not git("check-ignore", "-q", ".")


def first_commit() -> str:
    """Make a repository with one commit where there is none; return what to tell of it."""
    if in_repository():
        return "it stands in a git repository already"
    if not shutil.which("git"):
        return "no git here, so no repository"
    if not git("-c", "init.defaultBranch=main", "init", "-q"):
        return "`git init` failed, so no repository"
    quiet = ("-c", "commit.gpgsign=false", "-c", "user.useConfigOnly=true", "-c", "gc.auto=0")
    if git("add", "-A") and git(*quiet, "commit", "-q", "--no-verify", "-m", "Generate the project"):
        return "with a git repository and a first commit"
    return "with a git repository; commit once git knows your user.name and user.email"


def missing_requirements() -> list[str]:
    """Check the keys, tell of them, and return the services that `require` does not let pass."""
    sys.dont_write_bytecode = True
    sys.path.insert(
        0, str(PACKAGE)
    )  # the wiring is a package of its own, and this part needs nothing installed
    from stack import credentials  # type: ignore[import-not-found]

    accounts = {service: ANSWERS[question] for service, question in credentials.SETTINGS.items()}
    reports = credentials.check(os.environ, accounts)
    print("\nYour keys (check again with `doctor`):")
    credentials.show(reports, sys.stdout, os.environ)
    # Without an installation named, the project's own gateway plays Algorithmia's part and makes its own key.
    spared = {"algorithmia"} if not ANSWERS["algorithmia_username"] else set()
    return [
        report.service
        for report in reports
        if report.outcome != "ok" and not (report.outcome == "missing" and report.service in spared)
    ]


def main() -> None:
    """Finish the project, or fail with the reason in the last line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a folder's name may not fit the terminal's code page
    for folder in [*PACKAGE.rglob("__pycache__"), *ROOT.glob(".*_cache")]:  # of a template that was worked on
        shutil.rmtree(folder)
    if ANSWERS["check_credentials"] != "skip":
        failed = missing_requirements()
        if failed and ANSWERS["check_credentials"] == "require":
            sys.stdout.flush()
            sys.exit(
                f"check_credentials=require: not ok: {', '.join(failed)}. Mend it, answer warn or skip, "
                "or pass --keep-project-on-failure to keep the project as it is."
            )
    told, slug = first_commit(), ANSWERS["project_slug"]
    print(f"\nMade {ROOT}\n  {told}.\nNext:\n  cd {slug}\n  uv sync\n  uv run {slug} demo", flush=True)


main()
