"""Evaluations: perplexity by position, LongPPL, needles, RULER's thirteen tasks, MQAR, scoring.

The generators (`haystack`, `ruler*`, `needle`, `mqar`) are numpy and text, and need no model;
`scoring` and `longppl` run one. `registry` has every task by name, `suite` runs those asked for.
"""
