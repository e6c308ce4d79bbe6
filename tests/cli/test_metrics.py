"""``vnsmail metrics``."""

from vnsmail.supervisor import control


def test_metrics(vnsmail, supervisor):
    """The text as it is, and nothing else."""
    supervisor.answers[control.GetMetrics] = control.Measured("vnsmail_info 1\n")
    done = vnsmail("metrics")

    assert (0, "vnsmail_info 1\n", "") == (done.code, done.out, done.err)


def test_not_running(vnsmail):
    """One line, and the exit code for it."""
    assert 3 == vnsmail("metrics").code
