"""`report.html`: one file that needs no network, of a run, a model, a sweep or an experiment."""

from hybridlm.analysis.report.attention import AttentionText, attention_text
from hybridlm.analysis.report.write import write_report

__all__ = ["AttentionText", "attention_text", "write_report"]
