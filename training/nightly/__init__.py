"""The nightly job: from a journal to a promoted or refused version, unattended.

`run.run_nightly` is the whole of it and the page to read first. Every stage leaves one file in the
folder of its night, whole or not at all, so that a night that was killed goes on where it stopped::

    WORK/lock                          held while a night runs
    WORK/report.html, report.json      of the newest night
    WORK/nights/DATE-HASH/
        inputs.json                    what this night is made of; everything else follows from it
        gather.json, outcomes.parquet  one outcome table of journal and logs
        check.json                     what the table itself says against training
        train.json, bundle/            the version
        judge.json                     the version beside the champion and the simple baselines
        decide.json                    the gates
        register.json, promote.json    where it went
        report.json, report.html
        done.json
"""
