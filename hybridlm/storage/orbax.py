"""Orbax on `s3://`, which its 0.12 takes for a local path that is not absolute.

Three of its private functions decide how a path becomes a store of TensorStore. They are replaced
by ones that know both schemes; for paths of `gs://` and of this machine they do what they did.
"""

import functools
from collections.abc import Callable
from typing import Any

from hybridlm.errors import StorageError
from hybridlm.storage.objects import SCHEMES, Location, kvstore_spec


@functools.cache
def support_buckets() -> None:
    """Replaces the functions, once a process.

    Raises:
      StorageError: if this version of Orbax has no such functions.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    prefixes = tuple(f"{scheme}://" for scheme in SCHEMES)

    def spec(path: str) -> dict[str, Any]:
        return kvstore_spec(Location.of(path))

    def normalize(original: Callable[[str], str], path: str) -> str:
        return path.rstrip("/") if path.startswith(prefixes) else original(path)

    try:
        original = tensorstore_utils._normalize_path
        tensorstore_utils._use_gcs_driver, gcs_utils.get_kvstore_for_gcs  # noqa: B018
    except AttributeError as error:
        raise StorageError(
            f"this version of Orbax cannot write to a bucket ({error}): install orbax-checkpoint 0.12.8"
        ) from None
    tensorstore_utils._normalize_path = functools.partial(normalize, original)
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(prefixes)
    gcs_utils.get_kvstore_for_gcs = spec
