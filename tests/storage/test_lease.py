"""One process at a time writes below a folder of a bucket."""

import json
import threading
import time

import pytest

from hybridlm.errors import RunError
from hybridlm.storage import lease as leases
from hybridlm.storage import objects
from hybridlm.storage.lease import Lease

FAST = dict(refresh=0.15, expires=0.8)


def elsewhere(bucket, **more):
    """Writes the lease of a process on another machine."""
    holder = {
        "id": "other",
        "host": "far",
        "pid": 7,
        "place": "there",
        "since": "2026-01-01T00:00:00Z",
    }
    objects.write(f"{bucket}/.lease", json.dumps({**holder, **more}).encode(), guarded=False)


def test_a_second_process_is_told_who_holds_the_lease(bucket):
    first = Lease(bucket)
    try:
        with pytest.raises(
            RunError, match=r"another process is training in .*: process \d+ on .*, since 20"
        ):
            Lease(bucket)
    finally:
        first.close()
    Lease(bucket).close()
    assert objects.keys(bucket) == []


def test_a_lease_that_is_refreshed_elsewhere_is_left_alone(bucket):
    elsewhere(bucket)
    timer = threading.Timer(0.2, elsewhere, [bucket], {"nonce": 1})
    timer.start()
    with pytest.raises(RunError, match="process 7 on far, since 2026-01-01"):
        Lease(bucket, **FAST)
    timer.join()


def test_a_lease_that_nobody_refreshes_is_taken_over_after_it_expires(bucket, capfd):
    elsewhere(bucket)
    began = time.monotonic()
    lease = Lease(bucket, **FAST)
    assert time.monotonic() - began >= FAST["expires"]
    lease.check()
    lease.close()
    assert "process 7 on far" in capfd.readouterr().err


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(bucket):
    elsewhere(bucket, place=leases._place(), pid=2**22 + 1)
    began = time.monotonic()
    Lease(bucket).close()
    assert time.monotonic() - began < leases.EXPIRES / 2


def test_a_holder_that_lost_its_lease_writes_nothing_more(bucket):
    lease = Lease(bucket, **FAST)
    objects.write(f"{bucket}/x", b"1")
    elsewhere(bucket)
    time.sleep(3 * FAST["refresh"])
    for act in (lease.check, lambda: objects.write(f"{bucket}/x", b"2")):
        with pytest.raises(RunError, match="lost the lease .*process 7 on far"):
            act()
    lease.close()
    assert objects.read(f"{bucket}/x") == b"1"
    assert json.loads(objects.read(f"{bucket}/.lease"))["host"] == "far", "not its to remove"


def test_a_holder_that_was_stopped_past_the_expiry_asks_before_it_writes(bucket):
    lease = Lease(bucket, refresh=60, expires=0.2)  # its thread does nothing, as when stopped
    time.sleep(0.3)
    lease.check()  # nobody took it
    elsewhere(bucket)
    time.sleep(0.3)
    with pytest.raises(RunError, match="lost the lease"):
        objects.write(f"{bucket}/x", b"")
    lease.close()


def test_a_removed_lease_is_lost(bucket):
    lease = Lease(bucket, **FAST)
    objects.delete(f"{bucket}/.lease")
    time.sleep(3 * FAST["refresh"])
    with pytest.raises(RunError, match="was removed"):
        lease.check()
    lease.close()


@pytest.mark.slow
def test_a_server_that_fails_for_a_while_does_not_end_the_lease(bucket, gate):
    lease = Lease(bucket, refresh=0.2, expires=1.0)
    gate.fail_for(2.0)
    time.sleep(1.5)
    lease.check()  # waits for the server
    objects.write(f"{bucket}/x", b"")
    lease.close()


@pytest.mark.parametrize("conditions", [True, False])
def test_of_processes_that_start_at_once_one_gets_the_lease(
    storage_servers, conditions, monkeypatch
):
    url = f"gs://bucket/{time.monotonic_ns()}"
    monkeypatch.setattr(leases, "_SETTLE", 0.5)
    monkeypatch.setattr(leases, "_alive", lambda holder: None)  # as if on different machines
    monkeypatch.setattr(storage_servers.gates["gs"], "conditions", conditions)
    held, refused = [], []

    def start():
        try:
            held.append(Lease(url, **FAST))
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    try:
        assert (len(held), len(refused)) == (1, 3)
    finally:
        for lease in held:
            lease.close()
