"""Finish a generated project: first commit, credential check, what to run next.

Standard library only, and safe to run twice. Without it (--accept-hooks no) the project is whole too.
Modules are imported where they are used: at the start they would take longer than all that is done here.
"""

import os
import sys

# tojson escapes what Jinja and Python would act on, so no answer can become code.
ANSWERS = r"""{{ cookiecutter | tojson }}"""
CHECK = r"""[{{ cookiecutter.check_credentials | tojson }}]"""[2:-2]
BY_CRUFT = r"""[{{ cookiecutter._commit | default("") | tojson }}]"""[2:-2]
# Set inside another repository's hook, where they would lead git to that repository.
ELSEWHERE = """ALTERNATE_OBJECT_DIRECTORIES ATTR_SOURCE COMMON_DIR CONFIG CONFIG_COUNT CONFIG_PARAMETERS DIR GRAFT_FILE
IMPLICIT_WORK_TREE INDEX_FILE INTERNAL_SUPER_PREFIX NAMESPACE NO_REPLACE_OBJECTS OBJECT_DIRECTORY PREFIX
REPLACE_REF_BASE SHALLOW_FILE WORK_TREE"""
SAID = ".git/said"


def git(*commands: str, output: str = os.devnull) -> bool:
    """Run git in the project, quietly and without a question, until a command fails; return whether none did."""
    # One shell, since importing subprocess takes as long as git does; no answer is ever part of the line.
    # The disk is not waited for, as it was not for the files of the project.
    line = " && ".join(f"git -c core.fsync=none {command}" for command in commands)
    return os.system(f"({line}) >{output} 2>&1 <{os.devnull}") == 0  # noqa: S605


def in_repository() -> bool:
    """Whether the project belongs to a repository already (one that ignores it does not count)."""
    folder = os.getcwd()  # noqa: PTH109
    if os.path.exists(".git"):  # noqa: PTH110
        return True
    while folder != os.path.dirname(folder):  # noqa: PTH120
        folder = os.path.dirname(folder)  # noqa: PTH120
        if os.path.exists(os.path.join(folder, ".git")):  # noqa: PTH110, PTH118
            return not git("check-ignore -q .")
    return False


def is_draft() -> bool:
    """Whether cruft makes the project in a temporary folder, to compare two releases of the template."""
    if not BY_CRUFT:
        return False
    import tempfile

    folder, name = os.path.split(os.path.dirname(os.path.realpath(".")))  # noqa: PTH120
    return folder == os.path.realpath(tempfile.gettempdir()) and name.startswith(tempfile.gettempprefix())


def first_commit() -> str:
    """Make a repository with one commit where there is none; return what to tell of it."""
    for name in ELSEWHERE.split():
        os.environ.pop(f"GIT_{name}", None)
    # glibc would give the memory in which git writes a file back to the system, and ask for it again, file by file.
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "1000000"
    if in_repository():
        return "it stands in a git repository already"
    if not git("-c init.defaultBranch=main init -q"):
        return "without a git repository, since git does not work here"
    if BY_CRUFT:
        return "with a git repository; commit everything, .cruft.json too"
    # Line ends are LF already. Left as they are, and called big, the files go into one pack at a third of the time.
    os.makedirs(".git/info", exist_ok=True)  # noqa: PTH103
    with open(".git/info/attributes", "w") as attributes:  # noqa: PTH123
        attributes.write("* -text\n")
    quiet = "-c commit.gpgsign=false -c user.useConfigOnly=true -c gc.auto=0 -c maintenance.auto=false"
    commit = f'{quiet} commit -q --no-verify -m "Generate the project"'
    committed = git("-c core.bigFileThreshold=1 -c core.compression=0 add -A", commit, output=SAID)
    os.remove(".git/info/attributes")  # noqa: PTH107
    if committed:
        os.remove(SAID)  # noqa: PTH107
        return "with a git repository and a first commit"
    if not git("-c user.useConfigOnly=true var GIT_COMMITTER_IDENT"):
        return "with a git repository; commit once git knows your user.name and user.email"
    return f"with a git repository, but without a commit: {last_line()}"


def last_line() -> str:
    """Return what git, or a hook that it ran, said last of a commit that it did not make."""
    with open(SAID, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        lines = file.read().split("\n")
    said = [line.strip() for line in lines if line.strip()]
    text = "".join(character if character.isprintable() else "?" for character in said[-1]) if said else ""
    return (
        f"git says: {text}" if text else "git failed and says nothing, as a hook of yours may make it; try `git commit`"
    )


def recorded_wheel() -> str:
    """Return the path of the library's wheel; exit where it is not the file that SHA256SUMS records."""
    import hashlib

    with open("vendor/SHA256SUMS") as file:  # noqa: PTH123
        digest, name = file.read().split()
    with open(f"vendor/{name}", "rb") as wheel:  # noqa: PTH123
        if hashlib.sha256(wheel.read()).hexdigest() != digest:
            sys.exit(
                f"vendor/{name} has changed: its SHA-256 is not the one in vendor/SHA256SUMS; clone the template again"
            )
    return os.path.abspath(f"vendor/{name}")  # noqa: PTH100


def missing_requirements() -> list[str]:
    """Check the keys, tell of them, and return the services that `require` does not let pass."""
    import json

    answers = json.loads(ANSWERS)
    sys.dont_write_bytecode = True
    # Read from the vendored wheel as it is; this part of the library needs nothing installed.
    sys.path.insert(0, recorded_wheel())
    from free_ml_stack.credentials import check as credentials

    accounts = {service: answers[question] for service, question in credentials.SETTINGS.items()}
    reports = credentials.check(os.environ, accounts)
    print("\nYour keys (check again with `doctor`):")
    credentials.show(reports, sys.stdout, os.environ)
    # Without an installation named, the project's own gateway plays Algorithmia's part and makes its own key.
    spared = {"algorithmia"} if not answers["algorithmia_username"] else set()
    return [
        report.service
        for report in reports
        if report.outcome != "ok" and not (report.outcome == "missing" and report.service in spared)
    ]


def main() -> None:
    """Finish the project, or fail with the reason in the last line."""
    if is_draft():
        return
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a folder's name may not fit a code page
    failed = missing_requirements() if CHECK != "skip" else []
    if failed and CHECK == "require":
        sys.stdout.flush()
        sys.exit(
            f"check_credentials=require: not ok: {', '.join(failed)}. Mend it, answer warn or skip, "
            "or pass --keep-project-on-failure to keep the project as it is."
        )
    told, folder = first_commit(), os.getcwd()  # noqa: PTH109
    slug = os.path.basename(folder)  # noqa: PTH119
    print(f"\nMade {folder}\n  {told}.\nNext:\n  cd {slug}\n  uv sync\n  uv run {slug} demo", flush=True)


main()
