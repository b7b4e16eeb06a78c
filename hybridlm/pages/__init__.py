"""HTML pages that are one file: their colours, their shell, the script they share."""

from hybridlm.pages.scheme import DARK, LIGHT, PALETTE, scheme
from hybridlm.pages.shell import page

__all__ = ["DARK", "LIGHT", "PALETTE", "page", "scheme"]
