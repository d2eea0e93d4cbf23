"""A program and what passes made of it, as one HTML file to look at."""

from irloom.viewer.build import Errors, Settings, document
from irloom.viewer.core import page, view, write
from irloom.viewer.document import Document

__all__ = ["Document", "Errors", "Settings", "document", "page", "view", "write"]
