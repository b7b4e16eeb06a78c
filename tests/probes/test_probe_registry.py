"""The registry of probes, and those of it that a run's config may name."""

import pytest

from hybridlm.errors import UserError
from hybridlm.probes import registry
from hybridlm.probes.settings import ProbesConfig, ProbeSettings
from hybridlm.probes.subject import OpenedSubject


def test_a_config_may_name_the_live_ones():
    chosen = registry.live_probes(ProbesConfig(("slot_share", "heads")))
    assert [probe.name for probe in chosen] == ["heads", "slot_share"]  # the registry's order


def test_what_a_probe_reads_is_the_subjects():
    for probe in registry.PROBES.values():
        assert probe.help and probe.definition
        assert all(hasattr(OpenedSubject, name) for name in probe.reads)
        assert probe.live is None or probe.reads == ("prompts",)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="--probes 'entropie' is unknown: did you mean 'entropy'?"):
        registry.chosen_probes(ProbeSettings(("heads", "entropie")))


def test_what_the_log_says_of_no_heads():
    """A model without heads or slots has empty tables, of which nothing is said."""
    from hybridlm.probes.table import Table

    empty = Table("any", "", "", ())
    assert registry.LIVE["heads"].live([empty, empty]) == []
    assert registry.LIVE["slot_share"].live([empty]) == []
