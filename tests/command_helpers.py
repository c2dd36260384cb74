"""What the tests of `python -m qllk` share."""

from qllk.__main__ import main


def run_line(capture, line):
    """Run a command line; returns the exit code, the output and the errors, as text."""
    code = main(line.split())
    texts = (
        t.decode(errors="replace") if isinstance(t, bytes) else t for t in capture.readouterr()
    )
    return code, *texts
