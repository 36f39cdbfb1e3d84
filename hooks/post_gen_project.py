"""Finish a generated project: first commit, check of credentials, next commands.

Standard library only, and idempotent. The project is complete without this hook too (--accept-hooks no). Modules are
imported where they are used, because the imports take longer than the rest of the hook.
"""

import os
import sys

# tojson escapes special characters of Jinja and Python, so that no answer is executed as code.
ANSWERS = r"""{{ cookiecutter | tojson }}"""
CHECK = r"""[{{ cookiecutter.check_credentials | tojson }}]"""[2:-2]
BY_CRUFT = r"""[{{ cookiecutter._commit | default("") | tojson }}]"""[2:-2]
# Set inside a hook of another repository; git would use that repository.
ELSEWHERE = """ALTERNATE_OBJECT_DIRECTORIES ATTR_SOURCE COMMON_DIR CONFIG CONFIG_COUNT CONFIG_PARAMETERS DIR GRAFT_FILE
IMPLICIT_WORK_TREE INDEX_FILE INTERNAL_SUPER_PREFIX NAMESPACE NO_REPLACE_OBJECTS OBJECT_DIRECTORY PREFIX
QUARANTINE_PATH REPLACE_REF_BASE SHALLOW_FILE WORK_TREE"""
OUTPUT = ".git/commit-output"


def git(*commands: str, output: str = os.devnull) -> bool:
    """Run git commands in the project, without output or prompts, until one fails; return whether all succeeded."""
    # One shell, because importing subprocess takes as long as git; answers are never part of the command line.
    # Without fsync, as for the files of the project.
    line = " && ".join(f"git -c core.fsync=none {command}" for command in commands)
    return os.system(f"({line}) >{output} 2>&1 <{os.devnull}") == 0  # noqa: S605


def in_repository() -> bool:
    """Return whether the project is inside a repository that does not ignore it."""
    folder = os.getcwd()  # noqa: PTH109
    if os.path.exists(".git"):  # noqa: PTH110
        return True
    while folder != os.path.dirname(folder):  # noqa: PTH120
        folder = os.path.dirname(folder)  # noqa: PTH120
        if os.path.exists(os.path.join(folder, ".git")):  # noqa: PTH110, PTH118
            return not git("check-ignore -q .")
    return False


def is_draft() -> bool:
    """Return whether cruft generates the project in a temporary folder, to compare two releases of the template."""
    if not BY_CRUFT:
        return False
    import tempfile

    folder, name = os.path.split(os.path.dirname(os.path.realpath(".")))  # noqa: PTH120
    return folder == os.path.realpath(tempfile.gettempdir()) and name.startswith(tempfile.gettempprefix())


def first_commit() -> str:
    """Create a repository with one commit unless there is one; return a message."""
    for name in ELSEWHERE.split():
        os.environ.pop(f"GIT_{name}", None)
    # Otherwise glibc releases and requests git's memory again for each file.
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "1000000"
    if in_repository():
        return "inside an existing git repository"
    os.mkdir(".git")  # noqa: PTH102
    if not git("-c init.defaultBranch=main init -q", output=OUTPUT):
        reason = last_line().removeprefix("git: ")
        os.remove(OUTPUT)  # noqa: PTH107
        if not os.listdir(".git"):  # noqa: PTH208
            os.rmdir(".git")  # noqa: PTH106
        return f"without a git repository, because git failed: {reason}"
    if BY_CRUFT:
        return "with a git repository; commit all files, including .cruft.json"
    # Line endings are LF already. Without conversion, and as "big" files, they are packed in a third of the time.
    os.makedirs(".git/info", exist_ok=True)  # noqa: PTH103
    with open(".git/info/attributes", "w") as attributes:  # noqa: PTH123
        attributes.write("* -text\n")
    quiet = "-c commit.gpgsign=false -c user.useConfigOnly=true -c gc.auto=0 -c maintenance.auto=false"
    commit = f'{quiet} commit -q --no-verify -m "Generate the project"'
    committed = git("-c core.bigFileThreshold=1 -c core.compression=0 add -A", commit, output=OUTPUT)
    os.remove(".git/info/attributes")  # noqa: PTH107
    if committed:
        os.remove(OUTPUT)  # noqa: PTH107
        return "with a git repository and a first commit"
    if not git("-c user.useConfigOnly=true var GIT_COMMITTER_IDENT"):
        return "with a git repository; set user.name and user.email of git, then commit"
    return f"with a git repository, but without a commit: {last_line()}"


def last_line() -> str:
    """Return the last output line of a failed commit, from git or from a hook."""
    with open(OUTPUT, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        lines = file.read().split("\n")
    printed = [line.strip() for line in lines if line.strip()]
    text = "".join(character if character.isprintable() else "?" for character in printed[-1]) if printed else ""
    return f"git: {text}" if text else "git failed without a message, possibly in a hook; try `git commit`"


def recorded_wheel() -> str:
    """Return the path of the library's wheel; exit if it does not match SHA256SUMS."""
    import hashlib

    with open("vendor/SHA256SUMS") as file:  # noqa: PTH123
        digest, name = file.read().replace("*", "").split()
    with open(f"vendor/{name}", "rb") as wheel:  # noqa: PTH123
        if hashlib.sha256(wheel.read()).hexdigest() != digest:
            sys.exit(
                f"checksum mismatch for vendor/{name}: it differs from vendor/SHA256SUMS; clone the template again"
            )
    return os.path.abspath(f"vendor/{name}")  # noqa: PTH100


def missing_requirements() -> list[str]:
    """Check the keys, print the reports, and return the services that fail with `require`."""
    import json

    answers = json.loads(ANSWERS)
    sys.dont_write_bytecode = True
    # Imported from the vendored wheel; this part of the library has no dependencies.
    sys.path.insert(0, recorded_wheel())
    from free_ml_stack.credentials import check as credentials

    accounts = {service: answers[question] for service, question in credentials.SETTINGS.items()}
    reports = credentials.check(os.environ, accounts)
    print("\nYour keys (check again with `doctor`):")
    credentials.show(reports, sys.stdout, os.environ)
    # Without an installation, the project uses its own gateway, which creates its own key.
    optional = {"algorithmia"} if not answers["algorithmia_username"] else set()
    return [
        report.service
        for report in reports
        if report.outcome != "ok" and not (report.outcome == "missing" and report.service in optional)
    ]


def main() -> None:
    """Finish the project, or exit with the reason in the last line."""
    if is_draft():
        return
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a closed stream
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # the encoding may not support the folder's name
    failed = missing_requirements() if CHECK != "skip" else []
    if failed and CHECK == "require":
        sys.stdout.flush()
        sys.exit(
            f"check_credentials=require: check failed for {', '.join(failed)}. Fix the keys, answer warn or skip, "
            "or pass --keep-project-on-failure to keep the project."
        )
    message, folder = first_commit(), os.getcwd()  # noqa: PTH109
    slug = os.path.basename(folder)  # noqa: PTH119
    print(f"\nCreated {folder}\n  {message}.\nNext:\n  cd {slug}\n  uv sync\n  uv run {slug} demo", flush=True)


main()
