"""A run keeps the id that it was given at its first start."""

import json

from hybridlm.runs import workdir
from hybridlm.storage import objects, open_path


def recorded(path):
    """The id that a start of the run records."""
    workdir.record_environment(path, [], workdir.run_id(path))
    return json.loads((path / workdir.ENVIRONMENT).read_text())["id"]


def test_runs_of_one_name_have_different_ids_and_each_keeps_its_own(tmp_path):
    twins = [tmp_path / sweep / "lr=0.1" for sweep in ("first", "second")]
    for path in twins:
        path.mkdir(parents=True)
    ids = [recorded(path) for path in twins]
    assert ids[0] != ids[1]
    assert [recorded(path) for path in twins] == ids
    written = json.loads((twins[0] / workdir.ENVIRONMENT).read_text())
    assert written["id"] == ids[0] and len(written["sessions"]) == 2


def test_an_older_run_keeps_the_name_that_it_is_known_by(tmp_path):
    """Its folder's, which older versions gave to Weights & Biases."""
    (tmp_path / workdir.ENVIRONMENT).write_text('{"sessions": ["2026-01-01T00:00:00Z"]}')
    for _ in range(2):
        assert recorded(tmp_path) == tmp_path.name


def test_an_id_is_kept_until_it_is_recorded_also_in_a_bucket(bucket):
    path = open_path(bucket)
    name = workdir.Workdir(path, None).keep_id()
    assert workdir.Workdir(path, None).keep_id() == name
    assert objects.keys(bucket) == [workdir.ID]
    assert recorded(path) == workdir.Workdir(path, None).keep_id() == name
    assert objects.keys(bucket) == [workdir.ENVIRONMENT]
