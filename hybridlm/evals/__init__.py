"""Evaluations: perplexity by position, LongPPL, needles, RULER's thirteen tasks, MQAR, scoring.

The generators (`haystack`, `ruler*`, `needle`, `mqar`) work on numpy arrays and text and need no
model; `scoring` and `longppl` run one. `registry` maps names to tasks; `suite` runs the chosen
tasks.
"""
