"""The settings of a site: all are documented, and invalid ones raise one sentence."""

import dataclasses

import pytest

from hybridlm.errors import ConfigError
from hybridlm.settings.describe import summary_and_meanings
from launch import site

TABLES = [site.LocalSite, site.SlurmSite, site.XpkSite, site.SkySite, site.Site]


@pytest.mark.parametrize("cls", TABLES)
def test_each_setting_is_documented(cls):
    _, meanings = summary_and_meanings(cls)
    missing = [f.name for f in dataclasses.fields(cls) if not meanings.get(f.name)]
    assert not missing


XPK = '[xpk]\ncluster = "c"\ntpu_type = "t"\nroot = "/r"\ndocker_image = "i"\n'
BAD = [
    ("[slurm]\nnodes = 0", "slurm.nodes must be at least 1, not 0"),
    ("[slurm]\nmax_num_timeout = -1", "slurm.max_num_timeout must be at least 0, not -1"),
    ("[slurm]\ncpus_per_task = 0", "slurm.cpus_per_task must be at least 1, or None, not 0"),
    ("[local]\ngpus = [0, -1]", "local.gpus[1] must be at least 0, not -1"),
    (XPK + "num_slices = 0", "xpk.num_slices must be at least 1, not 0"),
    (XPK + "max_restarts = -1", "xpk.max_restarts must be at least 0, not -1"),
    (XPK + "grace_seconds = 0", "xpk.grace_seconds must be at least 1, not 0"),
    (
        XPK + 'base_docker_image = "b"',
        "xpk.docker_image or base_docker_image must be given, and not",
    ),
]


@pytest.mark.parametrize("toml, sentence", BAD, ids=[s for _, s in BAD])
def test_an_invalid_setting_is_named(tmp_path, toml, sentence):
    path = tmp_path / "site.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError) as error:
        site.read_site(path)
    assert str(error.value).startswith(f"--site {path}: {sentence}")
