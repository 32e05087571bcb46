"""Which job of SLURM a process belongs to, and what is said where it cannot be queued again."""

import pytest

from segkit.training.guards.preemption import requeue, slurm_job


@pytest.mark.parametrize(
    "environment, job",
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NAME": "x"}, "8_3"),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash"}, None),  # a shell on a node: nothing runs it again
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "interactive"}, None),
        ({"SLURM_JOB_ID": "7; rm -rf", "SLURM_JOB_NAME": "train"}, None),
    ],
)
def test_the_job_of_a_process(environment: dict[str, str], job: str | None) -> None:
    assert slurm_job(environment) == job


def test_without_scontrol_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="job 7 could not be queued again .*submit it yourself"):
        requeue("7")
