"""What a run has achieved, as plain data for JSON and as text."""

from __future__ import annotations

from ..model.families import count_parameters
from ..probes import baselines, evaluate
from . import devices
from .trainer import Trainer


def begin_report(trainer: Trainer) -> dict:
    """What is known before training. The rest is filled in during the run.

    curve      [seconds, nats per byte] of each validation
    samples    [seconds, text]
    ended      why the run ended before its budget was spent, if it did
    """
    unit = "bytes" if trainer.corpus.bytes_per_id == 1 else "ids"
    return {
        "model": trainer.name,
        "unit": f"{trainer.question.label}{unit}",
        "parameters": count_parameters(trainer.model),
        "corpus": trainer.corpus.name,
        "device": trainer.place.device,
        "precision": trainer.place.precision,
        "machine": devices.describe_machine(),
        "baselines": baselines.measure_baselines(trainer.corpus),
        "curve": [],
        "samples": [],
        "ended": None,
        **progress(trainer),
    }


def progress(trainer: Trainer) -> dict:
    """How far a run has come: its steps, and what they have read and taken."""
    return {
        "steps": trainer.step,
        "bytes_seen": trainer.bytes_seen,
        "seconds": trainer.seconds,
    }


def end_report(report: dict, cause: BaseException) -> dict:
    """The report of a run that ended early: what was measured until then, without a result."""
    how = "interrupted" if isinstance(cause, KeyboardInterrupt) else "ended by an error"
    return report | {"ended": f"{how} after step {report['steps']}"}


def finish_report(trainer: Trainer, report: dict) -> dict:
    """The report with the result: the loss on the whole held-out split."""
    nats, count = trainer.loss_by_position(len(trainer.corpus.valid))
    nats = evaluate.mean_loss(nats, count)
    result = {
        "held_out": int(count.sum()),
        "nats_per_byte": nats,
        "bits_per_byte": nats / evaluate.LN2,
    }
    return report | progress(trainer) | result


def format_report(report: dict) -> str:
    """A report as text."""
    found = ", ".join(f"{name} {bits:.3f}" for name, bits in report["baselines"].items())
    lines = [
        f"{report['model']}, {report['parameters']:,} parameters, on {report['corpus']}: "
        f"{report['steps']:,} steps, {report['bytes_seen'] / 1e6:.1f} MB read in "
        f"{report['seconds']:.0f} s on {report['device']} in {report['precision']}",
        _format_result(report),
        f"baselines in bits per byte: {found}",
    ]
    for seconds, text in report["samples"]:
        lines += [f"--- after {seconds:.1f} seconds of training ---", text]
    return "\n".join(lines)


def _format_result(report):
    if report["ended"]:
        return f"{report['ended']}, so not evaluated on the whole held-out split"
    return (
        f"held out, all {report['held_out']:,} {report['unit']}: "
        f"{report['nats_per_byte']:.4f} nats, {report['bits_per_byte']:.4f} bits per byte"
    )
