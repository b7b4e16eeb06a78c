"""Evaluations: perplexity by position, LongPPL, needles, RULER's thirteen tasks, MQAR, scoring.

The generators (`haystack`, `ruler*`, `needle`, `mqar`) are numpy and text, and need no model;
`scoring` and `longppl` run one; `suite` puts them together for `hybridlm eval`.
"""
