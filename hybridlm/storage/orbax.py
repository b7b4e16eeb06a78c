"""Orbax on both kinds of bucket, without Google's client.

Orbax 0.12 takes `s3://` for a local path that is not absolute, and asks Google's client whether a
bucket of `gs://` has folders. Five of its private functions decide this. They are replaced by ones
that treat both kinds as it treats `gs://`: a checkpoint is complete once its commit mark is written.
For paths of this machine they do what they did.
"""

import functools
import pathlib
from typing import Any

from hybridlm.errors import StorageError
from hybridlm.storage.filesystem import COMMIT_MARK
from hybridlm.storage.objects import SCHEMES, Location, keys, kvstore_spec
from hybridlm.storage.paths import absolute, is_remote

_PREFIXES = tuple(f"{scheme}://" for scheme in SCHEMES)
_REPLACED = {
    "orbax.checkpoint._src.path.gcs_utils": (
        "is_gcs_path",
        "is_hierarchical_namespace_enabled",
        "get_kvstore_for_gcs",
    ),
    "orbax.checkpoint._src.serialization.tensorstore_utils": ("_normalize_path", "_use_gcs_driver"),
}


def orbax_path(path: pathlib.Path) -> pathlib.Path:
    """A checkpoint's path as Orbax takes it: absolute, and of a bucket if it is one."""
    if is_remote(path):
        support_buckets()
    return absolute(path)


@functools.cache
def support_buckets() -> None:
    """Replaces the functions, once a process.

    Raises:
      StorageError: if this version of Orbax has no such functions.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    for module in (gcs_utils, tensorstore_utils):
        for name in _REPLACED[module.__name__]:
            if not callable(getattr(module, name, None)):
                raise StorageError(
                    f"this version of Orbax cannot write to buckets ({module.__name__} has no {name}):"
                    " install orbax-checkpoint 0.12.8"
                )
    normalize = tensorstore_utils._normalize_path
    gcs_utils.is_gcs_path = _is_bucket_path
    # Listings here are of objects, so folders that a bucket may have besides are not seen.
    gcs_utils.is_hierarchical_namespace_enabled = lambda path: False
    gcs_utils.get_kvstore_for_gcs = _kvstore
    tensorstore_utils._use_gcs_driver = _is_bucket_path
    tensorstore_utils._normalize_path = lambda path: (
        path.rstrip("/") if _is_bucket_path(path) else normalize(path)
    )


def complete_steps(folder: Any) -> list[int]:
    """Steps of the complete checkpoints in a folder of a bucket, oldest first; one listing."""
    parts = [key.split("/") for key in keys(folder)]
    return sorted(int(step) for step, *rest in parts if rest == [COMMIT_MARK] and step.isdigit())


def _is_bucket_path(path: Any) -> bool:
    return (path if isinstance(path, str) else path.as_posix()).startswith(_PREFIXES)


def _kvstore(path: str) -> dict[str, Any]:
    return kvstore_spec(Location.of(path))
