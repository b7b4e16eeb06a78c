"""Numbers of fact sheets as text."""


def count(number: float) -> str:
    """8030261248 -> "8.03B"."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= size:
            return (
                f"{number / size:.2f}{unit}"
                if number < 100 * size
                else f"{number / size:.0f}{unit}"
            )
    return f"{number:,.0f}"


def kib(size: float) -> str:
    """Bytes as KiB, with one decimal where it matters."""
    return f"{size / 1024:.1f} KiB".replace(".0 ", " ")


def gib(size: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def flops(number: float) -> str:
    """FLOPs as GFLOPs."""
    return f"{number / 1e9:,.1f} G"
