"""What a worker of the sweep may run into."""

import os
import time

from irloom.zoo.core import Row


def doomed(name, columns):
    """Fine, unless the name says otherwise."""
    if name == "dies":
        os._exit(3)
    if name == "hangs":
        time.sleep(600)
    return Row(name, built="built" in columns)
