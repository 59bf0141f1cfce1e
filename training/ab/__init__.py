"""Reads A/B tests of router versions: who is better, by how much, how sure, and whether the test can be trusted.

`table` reads requests, `moments` sums them per look, `contrast` compares two arms, `sequence` says how sure that is
at every look, `health` what is wrong with the test, `verdict` what to do, `reading` puts these in order.
"""
