"""Measuring for a gate: two environments, the *sides*, run cell by cell in turn (A B B A …) in one session.

    result = run_gate(cells, ("peft==0.20.0", None), judge, SessionOptions(folder=…))  # session.py
    result.records["base"], result.records["candidate"]     # that count, in the order run
    result.sitting                                          # who, in which order, when, why it stopped

``judge(records, repeats)`` returns the ids of the cells that more runs could decide. ``load_sitting(folder)``
of ``bench.records.sessions`` returns the same result from disk. ``calibrate(cells, options)`` runs the
environment as it is against itself and returns a ``bench.records.sessions.Calibration``.
``gate_references`` of ``gate.py`` has a session judged as well; what decides is in ``bench.compare``, and
what shows it in ``bench.report``.
"""
