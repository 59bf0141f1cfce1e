"""`router-ml benchmark`: our router beside what a competent engineer would pick, on tables of real outcomes.

`tables` reads, `baselines` predicts, `contest` lets all of them play on the same splits,
`intervals` says what is noise; the studies (`little_data`, `stability`) and `suite` put them together.
"""
