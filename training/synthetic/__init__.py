"""A seeded world of known truth, from which the demo, tests and load tests draw.

`World` says how likely each model answers each prompt, and what any policy is
worth; `simulate` lets traffic happen to it; `run_simulate` writes that to files.
"""
