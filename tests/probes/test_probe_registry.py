"""The registry of probes, and the live probes that a run's config may name."""

import pytest

from hybridlm.errors import UserError
from hybridlm.probes import registry
from hybridlm.probes.settings import ProbesConfig, ProbeSettings
from hybridlm.probes.subject import OpenedSubject


def test_a_config_may_name_live_probes():
    chosen = registry.live_probes(ProbesConfig(("slot_share", "heads")))
    assert [probe.name for probe in chosen] == ["heads", "slot_share"]  # the registry's order


def test_the_subject_has_what_each_probe_reads():
    for probe in registry.PROBES.values():
        assert probe.help and probe.definition
        assert all(hasattr(OpenedSubject, name) for name in probe.reads)
        assert probe.live is None or probe.reads == ("prompts",)


def test_an_unknown_probe_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="--probes 'entropie' is unknown: did you mean 'entropy'?"):
        registry.chosen_probes(ProbeSettings(("heads", "entropie")))


def test_empty_tables_add_nothing_to_the_log():
    """A model without heads or slots has empty tables."""
    from hybridlm.probes.table import Table

    empty = Table("any", "", "", ())
    assert registry.LIVE["heads"].live([empty, empty]) == []
    assert registry.LIVE["slot_share"].live([empty]) == []
