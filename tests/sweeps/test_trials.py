"""Trials shared by several processes: each one runs exactly once, even if processes die."""

import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from free_ml_stack.errors import StackError
from free_ml_stack.sweeps import trials
from free_ml_stack.sweeps.shared import ask_lock, open_storage
from free_ml_stack.sweeps.sweep_file import parse_sweep
from free_ml_stack.sweeps.trials import LEASE, Trials, open_study

GRID = "method: grid\nmetric: {name: loss}\nparameters: {x: {values: [0, 1, 2, 3, 4, 5, 6, 7]}}\n"
ONE = GRID.replace("0, 1, 2, 3, 4, 5, 6, 7", "0")
BAYES = "method: bayes\nmetric: {name: loss}\nparameters: {x: {min: 0.0, max: 1.0}}\n"


def shared(place: str, text: str = GRID, sampler: str = "tpe") -> Trials:
    """The trials of a storage, as seen by one process."""
    plan = parse_sweep(text, "sweep.yaml")
    storage = open_storage(place, Path("nowhere"), "s")
    return Trials(plan, open_study(plan, storage, "s", sampler), ask_lock(place))


def states(crew: Trials) -> list[TrialState]:
    return [trial.state for trial in crew.all()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", pytest.param("database", marks=pytest.mark.slow)])
def test_concurrent_processes_run_each_point_once(tmp_path: Path, kind: str) -> None:
    place = str(tmp_path) if kind == "folder" else f"sqlite:///{tmp_path / 'trials.db'}"
    crews = [shared(place) for _ in range(4)]
    taken: list[int] = []

    def work(crew: Trials) -> None:
        while len(crew.ended()) < len(crew.points):
            if job := crew.next(len(crew.points)):
                taken.append(job.config["x"])
                crew.end(job.trial, float(job.config["x"]), stopped=False)

    threads = [threading.Thread(target=work, args=(crew,)) for crew in crews]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == list(range(8))
    assert states(crews[0]).count(TrialState.COMPLETE) == 8
    assert TrialState.RUNNING not in states(crews[0])


def test_no_more_trials_than_the_limit_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = shared(str(tmp_path), BAYES)
    monkeypatch.setattr(trials, "worker_id", lambda: "elsewhere:1")
    other = shared(str(tmp_path), BAYES)
    first, second = one.next(2), other.next(2)
    assert first and second and first.config != second.config
    assert one.next(2) is None
    one.end(first.trial, 0.5, stopped=False)
    assert other.next(2) is None
    assert len(one.ended()) == 1


def test_a_trial_of_another_machine_is_requeued_when_its_lease_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "worker_id", lambda: "elsewhere:1")
    dead = shared(str(tmp_path), BAYES)
    job = dead.next(1)
    assert job
    monkeypatch.undo()
    heir = shared(str(tmp_path), BAYES)
    heir.reclaim()
    assert states(heir) == [TrialState.RUNNING]
    dead.mine[job.trial].set_user_attr("until", time.time() - 1)
    heir.reclaim()
    assert states(heir) == [TrialState.FAIL, TrialState.WAITING]
    again = heir.next(1)
    assert again and (again.config, again.run) == (job.config, job.run)  # resumes from its checkpoint
    heir.end(again.trial, 0.25, stopped=False)
    dead.end(job.trial, 0.5, stopped=False)  # a slow process: its late result is ignored
    assert [trial.value for trial in heir.ended()] == [0.25]


def test_a_lease_is_renewed_while_a_trial_runs(tmp_path: Path) -> None:
    crew = shared(str(tmp_path), BAYES)
    job = crew.next(1)
    assert job
    crew.mine[job.trial].set_user_attr("until", 0.0)
    crew.renewed -= LEASE
    crew.renew()
    assert crew.running()[0].user_attrs["until"] > time.time() + LEASE / 2


def test_a_trial_without_an_owner_is_requeued(tmp_path: Path) -> None:
    """The process was killed between asking for a trial and recording its owner."""
    crew = shared(str(tmp_path), BAYES)
    crew.study.ask()
    crew.reclaim()
    assert states(crew) == [TrialState.FAIL, TrialState.WAITING]


def test_a_lost_point_of_the_grid_is_queued_again(tmp_path: Path) -> None:
    """The process was killed between failing a dead process's trial and requeueing it."""
    crew = shared(str(tmp_path))
    job = crew.next(8)
    assert job
    crew.study.tell(job.trial, state=TrialState.FAIL)
    seen = []
    while (found := crew.next(8)) is not None:
        seen.append(found.config["x"])
        crew.end(found.trial, 0.0, stopped=False)
    assert sorted(seen) == list(range(8))


@pytest.mark.parametrize("text", [BAYES, ONE])
def test_a_trial_whose_process_dies_repeatedly_fails(tmp_path: Path, text: str) -> None:
    crew = shared(str(tmp_path), text)
    runs = set()
    for last in (False, False, True):
        job = crew.next(1)
        assert job
        runs.add(job.run)
        assert crew.retry(job.trial) is not last
    assert len(runs) == 1
    crew.fail(job.trial, "it died")
    assert [trial.user_attrs["error"] for trial in crew.ended()] == ["it died"]
    assert crew.next(1) is None


def test_a_journal_with_an_incomplete_last_line_is_read(tmp_path: Path) -> None:
    crew = shared(str(tmp_path), BAYES)
    job = crew.next(1)
    assert job
    crew.end(job.trial, 0.5, stopped=False)
    with (tmp_path / "s.log").open("ab") as journal:
        journal.write(b'{"op_code": 5, "wor')
    again = shared(str(tmp_path), BAYES)
    assert [trial.value for trial in again.ended()] == [0.5]
    assert again.next(2)


def test_gp_is_an_available_sampler(tmp_path: Path) -> None:
    assert isinstance(shared(str(tmp_path), BAYES, "gp").study.sampler, optuna.samplers.GPSampler)
    assert isinstance(shared(str(tmp_path), BAYES).study.sampler, optuna.samplers.TPESampler)


@pytest.mark.parametrize("place", ["nosuch://host/db", "sqlite:////proc/none/trials.db"])
def test_an_invalid_study_gives_a_one_line_error(place: str) -> None:
    with pytest.raises(StackError, match="--study") as raised:
        shared(place)
    assert "\n" not in str(raised.value)


def test_a_nan_value_is_ignored_for_bands(tmp_path: Path) -> None:
    crew = shared(str(tmp_path), BAYES + "early_terminate: {type: hyperband, min_iter: 1, eta: 4}\n")
    jobs = [crew.next(9) for _ in range(3)]
    orders = [crew.report(job.trial, value) for job, value in zip(jobs, (float("nan"), 1.0, 2.0), strict=True) if job]
    assert orders == ["on", "on", "stop"]


@pytest.mark.parametrize("text", [GRID, BAYES])
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_an_adopted_trial_counts_once(tmp_path: Path, text: str, sampler: str) -> None:
    crew = shared(str(tmp_path), text, sampler)
    assert crew.adopt("a-run", {"x": 0}, [0.5, 0.25], 0.25)
    assert not crew.adopt("a-run", {"x": 0}, [0.5, 0.25], 0.25)
    taken = []
    while job := crew.next(8):
        taken.append(job.config["x"])
        crew.end(job.trial, 1.0 + len(taken), stopped=False)
    assert len(set(taken)) == 7 and 0 not in taken
    assert [trial.value for trial in crew.ended()] == [0.25, *range(2, 9)]


@pytest.mark.parametrize("text", [GRID, BAYES])
def test_failures_are_reset_by_a_new_call_if_no_trial_succeeded(tmp_path: Path, text: str) -> None:
    crew = shared(str(tmp_path), text)
    for _ in range(2):
        job = crew.next(8)
        assert job
        crew.fail(job.trial, "no such file")
    assert len(crew.ended()) == 2
    again = shared(str(tmp_path), text)
    again.reset_failures()
    assert not again.ended()
    for _ in range(8):
        job = again.next(8)
        assert job
        again.end(job.trial, 0.5, stopped=False)
    assert again.next(8) is None
    if again.points:
        assert sorted(trial.user_attrs["config"]["x"] for trial in again.ended()) == list(range(8))
    job = again.next(9)
    if job:
        again.fail(job.trial, "diverged")
        again.reset_failures()
        assert len(again.ended()) == 9
