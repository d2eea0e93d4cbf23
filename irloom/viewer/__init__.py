"""A program and what passes made of it, as one HTML file to look at."""

from irloom.viewer.build import Errors, Settings, document
from irloom.viewer.core import view
from irloom.viewer.document import Document
from irloom.viewer.html import render

__all__ = ["Document", "Errors", "Settings", "document", "render", "view"]
