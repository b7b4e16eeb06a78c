"""What the papers say which mixers can do, and whether the runs agree."""

from typing import NamedTuple

from experiments.state_tracking.tasks import Task

CAN, CANNOT, OPEN = "can", "cannot", "open"
LEARNED = 0.9  # accuracy from which a task counts as done


class Family(NamedTuple):
    """Mixers of which the papers say the same.

    Attributes:
      what: what their state does at a token.
      says: by task, `CAN`, `CANNOT` or `OPEN`, for two layers and any length.
      why: the sources.
    """

    what: str
    says: dict[str, str]
    why: str


def _says(parity: str, s3: str, a5: str, mqar: str) -> dict[str, str]:
    return dict(parity=parity, s3=s3, a5=a5, mqar=mqar)


FAMILIES = {
    "attention": Family(
        "attention over all tokens",
        _says(CANNOT, CANNOT, CANNOT, CAN),
        "states at any length: arXiv 1906.06755 (parity), 2207.00729 (constant depth is in TC0);"
        " recall: 2312.04927",
    ),
    "chosen": Family(
        "attention to tokens or blocks that the queries choose",
        _says(CANNOT, CANNOT, CANNOT, OPEN),
        "as the row above; recall needs that the key's token is chosen",
    ),
    "positive": Family(
        "decays by gates in [0, 1], channel by channel",
        _says(CANNOT, CANNOT, CANNOT, CAN),
        "arXiv 2411.12537 (eigenvalues that are all positive cannot do parity, which S3 and A5"
        " contain), 2404.08819 (diagonal: TC0); recall with a state of outer products: 2312.04927,"
        " 2402.18668",
    ),
    "beside": Family(
        "attention over all tokens beside decays by gates in [0, 1]",
        _says(CANNOT, CANNOT, CANNOT, CAN),
        "as the rows of its two branches",
    ),
    "fixed": Family(
        "decays by a constant",
        _says(CANNOT, CANNOT, CANNOT, CAN),
        "as the row above",
    ),
    "vector": Family(
        "decays by gates in [0, 1], one number a channel",
        _says(CANNOT, CANNOT, CANNOT, OPEN),
        "as the rows above; recall is bounded by a state of one vector (2402.18668)",
    ),
    "slots": Family(
        "slots that decay by gates in [0, 1], and a window of attention",
        _says(CANNOT, CANNOT, CANNOT, CAN),
        "our reading of arXiv 2411.12537: the slots' eigenvalues are positive, and a window forgets",
    ),
    "delta": Family(
        "I - beta k k^T with beta in (0, 1): eigenvalues in (0, 1]",
        _says(CANNOT, CANNOT, CANNOT, CAN),
        "arXiv 2411.12537; a product of two such matrices has no negative eigenvalue, either;"
        " recall: 2406.06484",
    ),
    "reflection": Family(
        "I - beta k k^T with beta in (0, 2): eigenvalues in (-1, 1]",
        _says(CAN, CAN, OPEN, CAN),
        "arXiv 2411.12537 (parity), 2502.10297 (dihedral groups, of which S3 is one, in two layers)",
    ),
    "product": Family(
        "two such reflections, whose product is a rotation",
        _says(CAN, CAN, CAN, CAN),
        "arXiv 2411.12537 and 2502.10297 (a permutation of n points is n - 1 reflections; A5 is the"
        " group of rotations of an icosahedron, and a rotation is two reflections)",
    ),
    "rotation": Family(
        "complex decays: pairs of rows rotate by an angle of the token",
        _says(CAN, OPEN, CANNOT, CAN),
        "arXiv 2603.15569 (parity and modular arithmetic), 2404.08819 (diagonal: TC0)",
    ),
    "rwkv7": Family(
        "Diag(w) - (a c) c^T, w in (0.545, 1), a in (0, 1): eigenvalues in (-0.455, 1)",
        _says(CAN, OPEN, OPEN, CAN),
        "arXiv 2503.14456 (all regular languages, with enough layers)",
    ),
    "local": Family(
        "seven tokens in two layers",
        _says(CANNOT, CANNOT, CANNOT, CANNOT),
        "by its reach; of MQAR it has the pair of one query in eleven",
    ),
}


def done(task: Task, accuracy: list[float]) -> bool:
    """Whether a run does the task: at 4 times the length; recall at the length itself."""
    return accuracy[0 if task.name == "mqar" else -1] >= LEARNED


def verdict(says: str, task: Task, accuracies: list[list[float]]) -> str:
    """Whether runs with different seeds agree with what a paper says.

    A run that does not do what is possible is no evidence against it: its steps are few.
    """
    count, of = sum(done(task, a) for a in accuracies), len(accuracies)
    if says == CAN:
        return "agrees" if count == of else f"{count} of {of} seeds within the steps"
    if says == CANNOT:
        return "agrees" if count == 0 else f"**disagrees** in {count} of {of} seeds"
    return f"done by {count} of {of} seeds"
