"""Files on this machine and in buckets of Google Cloud Storage and S3; see docs/storage.md."""

from hybridlm.storage.paths import (
    absolute,
    check_path,
    expand,
    is_remote,
    open_path,
    own_name,
    write_whole,
)

__all__ = ["absolute", "check_path", "expand", "is_remote", "open_path", "own_name", "write_whole"]
